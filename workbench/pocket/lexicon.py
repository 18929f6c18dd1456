# ruff: noqa: E501 (one idea is one row)
"""Words in four languages for the event generator, and English word lists for the fact generator.

A row is one idea: ``en | de | fr | es``; ``/`` parts synonyms. English verbs are ``base,past,participle``; German and
French verbs are participles (used with hat, a), Spanish verbs the simple past. German objects stand in the accusative.
"""

from __future__ import annotations

from functools import cache

from workbench.pocket.wordings import TEXTS

LANGUAGES = ("en", "de", "fr", "es")


@cache
def ideas(kind: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Ideas of a kind: [idea][language][synonym].

    >>> ideas("place")[0][1]
    ('im Keller',)
    """
    rows = (row.split("|") for row in _ROWS[kind].strip().splitlines())
    return tuple(tuple(tuple(w.strip() for w in cell.split("/")) for cell in row) for row in rows)


@cache
def words(kind: str) -> tuple[str, ...]:
    """English words or phrases of a kind, such as "tool" or "cause"; some lists stand in ``texts/lists.txt``."""
    listed = "; ".join(filter(None, [_LISTS.get(kind), _written_lists().get(kind)]))
    if not listed:
        raise ValueError(f"there is no list of {kind!r}")
    return tuple(
        dict.fromkeys(word for part in listed.split(";") if (word := " ".join(part.split())))
    )


@cache
def _written_lists() -> dict[str, str]:
    lines = (TEXTS / "lists.txt").read_text(encoding="utf-8").splitlines()
    return {kind: members for kind, _, members in (line.partition(": ") for line in lines)}


_ROWS = {
    "subject": """
the technician/the mechanic | der Techniker/der Mechaniker | le technicien/le mécanicien | el técnico/el mecánico
the teacher/the instructor | der Lehrer | le professeur/le maître | el profesor/el maestro
the nurse | die Krankenschwester/die Pflegerin | l'infirmière | la enfermera
the doctor/the physician | der Arzt | le médecin/le docteur | el médico/el doctor
the driver/the chauffeur | der Fahrer | le conducteur/le chauffeur | el conductor/el chófer
the mayor | der Bürgermeister | le maire | el alcalde
the gardener | der Gärtner | le jardinier | el jardinero
the cook/the chef | der Koch | le cuisinier/le chef | el cocinero
the neighbour | die Nachbarin | la voisine | la vecina
the guard/the watchman | der Wächter | le gardien | el guardia/el vigilante
the engineer | die Ingenieurin | l'ingénieure | la ingeniera
the farmer | der Bauer/der Landwirt | le paysan/le fermier | el campesino/el granjero
the captain | der Kapitän | le capitaine | el capitán
the police | die Polizei | la police | la policía
the manager/the boss | die Chefin/die Leiterin | la directrice/la chef | la directora/la jefa
the student/the pupil | die Schülerin | l'élève | la alumna/la estudiante
the fire brigade/the firefighters | die Feuerwehr | les pompiers | los bomberos
the committee/the board | der Ausschuss | le comité | el comité
the tenant/the lodger | der Mieter | le locataire | el inquilino
the landlord/the owner | der Vermieter/der Eigentümer | le propriétaire | el propietario/el dueño
the supplier/the vendor | der Lieferant | le fournisseur | el proveedor
the apprentice/the trainee | der Lehrling | l'apprenti | el aprendiz
the operator | die Bedienerin | l'opératrice | la operadora
the child/the kid | das Kind | l'enfant | el niño
the grandmother | die Großmutter/die Oma | la grand-mère | la abuela
the archivist | der Archivar | l'archiviste | el archivero
the researcher/the scientist | die Forscherin | la chercheuse | la investigadora
the postman/the mail carrier | der Briefträger | le facteur | el cartero
the night shift | die Nachtschicht | l'équipe de nuit | el turno de noche
the council | der Rat | le conseil | el consejo
""",
    "object": """
the pump | die Pumpe | la pompe | la bomba
the valve | das Ventil | la vanne/la soupape | la válvula
the engine/the motor | den Motor | le moteur | el motor
the window | das Fenster | la fenêtre | la ventana
the door/the gate | die Tür | la porte | la puerta
the roof | das Dach | le toit | el tejado/el techo
the bridge | die Brücke | le pont | el puente
the car/the vehicle | das Auto/den Wagen | la voiture/l'auto | el coche/el auto
the letter | den Brief | la lettre | la carta
the report | den Bericht | le rapport | el informe
the key | den Schlüssel | la clé | la llave
the lamp/the light | die Lampe | la lampe | la lámpara
the boat/the ship | das Boot/das Schiff | le bateau | el barco
the machine | die Maschine | la machine | la máquina
the cable/the wire | das Kabel | le câble | el cable
the filter | den Filter | le filtre | el filtro
the tank/the reservoir | den Tank/den Behälter | le réservoir/la cuve | el tanque/el depósito
the fence | den Zaun | la clôture | la cerca/la valla
the tree | den Baum | l'arbre | el árbol
the bread/the loaf | das Brot | le pain | el pan
the soup | die Suppe | la soupe | la sopa
the cheese | den Käse | le fromage | el queso
the invoice/the bill | die Rechnung | la facture | la factura
the contract/the agreement | den Vertrag | le contrat | el contrato
the rent | die Miete | le loyer | el alquiler
the book | das Buch | le livre | el libro
the picture/the painting | das Bild/das Gemälde | le tableau/la peinture | el cuadro/la pintura
the clock | die Uhr | l'horloge | el reloj
the computer | den Rechner/den Computer | l'ordinateur | el ordenador/la computadora
the server | den Server | le serveur | el servidor
the alarm | den Alarm | l'alarme | la alarma
the road/the street | die Straße | la route/la rue | la calle/la carretera
the house/the building | das Haus/das Gebäude | la maison/le bâtiment | la casa/el edificio
the water | das Wasser | l'eau | el agua
the oil | das Öl | l'huile | el aceite
the meeting/the session | die Sitzung/die Besprechung | la réunion/la séance | la reunión/la sesión
the plan | den Plan | le plan | el plan
the parcel/the package | das Paket | le colis/le paquet | el paquete
the medicine/the drug | das Medikament/die Arznei | le médicament | la medicina/el medicamento
the wall | die Mauer/die Wand | le mur | el muro/la pared
the fire/the blaze | das Feuer/den Brand | le feu/l'incendie | el fuego/el incendio
the dog | den Hund | le chien | el perro
the horse | das Pferd | le cheval | el caballo
the harvest/the crop | die Ernte | la récolte | la cosecha
the sensor/the probe | den Sensor/den Fühler | le capteur/la sonde | el sensor/la sonda
the switch | den Schalter | l'interrupteur | el interruptor
the money/the cash | das Geld | l'argent | el dinero
the map | die Karte | la carte | el mapa
""",
    "verb": """
repair,repaired,repaired/fix,fixed,fixed/mend,mended,mended | repariert/instand gesetzt | réparé | reparó/arregló
buy,bought,bought/purchase,purchased,purchased/acquire,acquired,acquired | gekauft/erworben | acheté/acquis | compró/adquirió
sell,sold,sold | verkauft | vendu | vendió
check,checked,checked/inspect,inspected,inspected/examine,examined,examined | geprüft/kontrolliert/untersucht | vérifié/contrôlé/examiné | revisó/examinó/controló
close,closed,closed/shut,shut,shut | geschlossen/zugemacht | fermé | cerró
open,opened,opened | geöffnet/aufgemacht | ouvert | abrió
find,found,found/discover,discovered,discovered | gefunden/entdeckt | trouvé/découvert | encontró/descubrió/halló
lose,lost,lost/mislay,mislaid,mislaid | verloren | perdu/égaré | perdió
clean,cleaned,cleaned/wash,washed,washed | gereinigt/gesäubert/geputzt | nettoyé/lavé | limpió/lavó
replace,replaced,replaced/exchange,exchanged,exchanged/swap,swapped,swapped | ersetzt/ausgetauscht | remplacé/échangé | reemplazó/cambió
remove,removed,removed/take away,took away,taken away | entfernt/weggenommen | enlevé/retiré | quitó/retiró
move,moved,moved/shift,shifted,shifted | verschoben/bewegt | déplacé/bougé | movió/desplazó
paint,painted,painted | gestrichen/bemalt | peint | pintó
destroy,destroyed,destroyed/wreck,wrecked,wrecked | zerstört/vernichtet | détruit/anéanti | destruyó/destrozó
damage,damaged,damaged/harm,harmed,harmed | beschädigt | endommagé/abîmé | dañó/estropeó
build,built,built/construct,constructed,constructed | gebaut/errichtet | construit/bâti | construyó/edificó
order,ordered,ordered/request,requested,requested | bestellt/angefordert | commandé/demandé | pidió/encargó
deliver,delivered,delivered/bring,brought,brought | geliefert/gebracht | livré/apporté | entregó/trajo
hide,hid,hidden/conceal,concealed,concealed | versteckt/verborgen | caché/dissimulé | escondió/ocultó
sign,signed,signed | unterschrieben/unterzeichnet | signé | firmó
reject,rejected,rejected/refuse,refused,refused/turn down,turned down,turned down | abgelehnt/zurückgewiesen | refusé/rejeté | rechazó/negó
approve,approved,approved/accept,accepted,accepted | genehmigt/angenommen | approuvé/accepté | aprobó/aceptó
pay for,paid for,paid for/settle,settled,settled | bezahlt/beglichen | payé/réglé | pagó/abonó
forget,forgot,forgotten/leave behind,left behind,left behind | vergessen/liegen gelassen | oublié/laissé | olvidó/dejó
see,saw,seen/notice,noticed,noticed/spot,spotted,spotted | gesehen/bemerkt | vu/remarqué/aperçu | vio/notó
measure,measured,measured/gauge,gauged,gauged | gemessen/vermessen | mesuré | midió
stop,stopped,stopped/halt,halted,halted | angehalten/gestoppt | arrêté/stoppé | paró/detuvo
start,started,started/launch,launched,launched/begin,began,begun | gestartet/begonnen | démarré/commencé | inició/empezó/comenzó
install,installed,installed/fit,fitted,fitted | eingebaut/installiert | installé/posé | instaló/colocó
borrow,borrowed,borrowed | ausgeliehen/geborgt | emprunté | tomó prestado
steal,stole,stolen/rob,robbed,robbed | gestohlen/geraubt | volé/dérobé | robó/hurtó
draw,drew,drawn/sketch,sketched,sketched | gezeichnet/skizziert | dessiné/esquissé | dibujó/trazó
fill,filled,filled/top up,topped up,topped up | gefüllt/aufgefüllt | rempli | llenó/rellenó
empty,emptied,emptied/drain,drained,drained | geleert/entleert | vidé/vidangé | vació/desaguó
cancel,cancelled,cancelled/call off,called off,called off | abgesagt/gestrichen | annulé/supprimé | canceló/anuló
postpone,postponed,postponed/delay,delayed,delayed/put off,put off,put off | aufgeschoben/vertagt | reporté/retardé | aplazó/pospuso
heat,heated,heated/warm,warmed,warmed | erhitzt/erwärmt | chauffé/réchauffé | calentó
cover,covered,covered/wrap,wrapped,wrapped | bedeckt/abgedeckt | couvert/recouvert | cubrió/tapó
test,tested,tested/try out,tried out,tried out | getestet/ausprobiert | testé/essayé | probó/ensayó
protect,protected,protected/shield,shielded,shielded | geschützt/bewacht | protégé/gardé | protegió/resguardó
""",
    "place": """
in the cellar/in the basement | im Keller | dans la cave/au sous-sol | en el sótano
at the harbour/in the port | im Hafen | au port | en el puerto
behind the school | hinter der Schule | derrière l'école | detrás de la escuela
in the kitchen | in der Küche | dans la cuisine | en la cocina
on the second floor/on the second storey | im zweiten Stock | au deuxième étage | en el segundo piso
in the garden/in the yard | im Garten | dans le jardin | en el jardín
at the station | am Bahnhof | à la gare | en la estación
in the workshop/in the garage | in der Werkstatt | dans l'atelier | en el taller
near the church | bei der Kirche | près de l'église | cerca de la iglesia
in hall 3 | in Halle 3 | dans le hall 3 | en la nave 3
in the village | im Dorf | au village | en el pueblo
at the market | auf dem Markt | au marché | en el mercado
in the laboratory/in the lab | im Labor | au laboratoire/au labo | en el laboratorio
by the river/on the bank | am Fluss/am Ufer | au bord de la rivière | junto al río/a la orilla
in the library | in der Bibliothek | à la bibliothèque | en la biblioteca
in the control room | im Leitstand | dans la salle de contrôle | en la sala de control
""",
    "time": """
on Monday | am Montag | lundi | el lunes
on Tuesday | am Dienstag | mardi | el martes
on Wednesday | am Mittwoch | mercredi | el miércoles
on Thursday | am Donnerstag | jeudi | el jueves
on Friday | am Freitag | vendredi | el viernes
at noon/at midday | am Mittag | à midi | al mediodía
at midnight | um Mitternacht | à minuit | a medianoche
in the morning | am Morgen | le matin | por la mañana
in the evening | am Abend | le soir | por la tarde
in spring | im Frühling | au printemps | en primavera
in autumn | im Herbst | en automne | en otoño
in winter | im Winter | en hiver | en invierno
last year | letztes Jahr | l'année dernière | el año pasado
in March | im März | en mars | en marzo
in July | im Juli | en juillet | en julio
after the storm | nach dem Sturm | après la tempête | después de la tormenta
before the holidays | vor den Ferien | avant les vacances | antes de las vacaciones
""",
    "reason": """
because the filter was blocked/since the filter was clogged | weil der Filter verstopft war | parce que le filtre était bouché | porque el filtro estaba atascado
because the power had failed/since there was no electricity | weil der Strom ausgefallen war | parce que le courant était coupé | porque no había corriente
because it was raining/since rain was falling | weil es regnete | parce qu'il pleuvait | porque llovía
because money was short/since there was not enough money | weil das Geld fehlte | parce que l'argent manquait | porque faltaba dinero
because it was too dangerous/since the risk was too great | weil es zu gefährlich war | parce que c'était trop dangereux | porque era demasiado peligroso
because nobody was there/since everyone was away | weil niemand da war | parce qu'il n'y avait personne | porque no había nadie
because the pressure was too high/since the pressure had risen | weil der Druck zu hoch war | parce que la pression était trop forte | porque la presión era demasiado alta
because the guests arrived early/since the guests came too soon | weil die Gäste zu früh kamen | parce que les invités étaient en avance | porque los invitados llegaron pronto
because the law demands it/since the rules require it | weil das Gesetz es verlangt | parce que la loi l'exige | porque la ley lo exige
because the old one was broken/since the old one had worn out | weil das alte kaputt war | parce que l'ancien était cassé | porque el viejo estaba roto
because it made a strange noise/since it sounded odd | weil es seltsam klang | parce que le bruit était étrange | porque hacía un ruido extraño
because the deadline was near/since time was running out | weil die Zeit knapp war | parce que le temps pressait | porque quedaba poco tiempo
""",
}

_LISTS = {
    "noun": """glacier; engine; library; museum; harbour; orchard; battery; telescope; bridge; archive; market; furnace;
garden; reactor; turbine; lantern; violin; compass; canal; quarry; antenna; festival; protocol; compiler; dataset; sensor;
satellite; vaccine; enzyme; forest; valley; tower; clock; painting; novel; treaty; railway; mine; theatre; camera; printer;
robot; kernel; queue; scheduler; parser; boiler; mirror; carpet; cathedral; castle; vineyard; lighthouse; dam; pottery; lace;
cheese market; honey; sea salt; spring water; stone wall; wool; glass; silk; timber; copper ore; rail wagon; bicycle""",
    "adjective": """old; northern; quiet; blue; rapid; hidden; bright; narrow; modern; ancient; solar; public; wooden;
central; digital; remote; frozen; golden; small; large; red; green; silver; western; eastern; open; secret; heavy; light;
broken; warm; cold; deep; early; late; famous; simple; rare; common; sharp; soft; round; double; spare; new""",
    "profession": """baker; lawyer; pilot; carpenter; dentist; journalist; plumber; musician; chemist; tailor; judge;
librarian; fisherman; surgeon; translator; electrician; shepherd; accountant; painter; midwife; clockmaker; butcher""",
    "language": """French; German; Spanish; Polish; Turkish; Arabic; Finnish; Greek; Welsh; Czech; Dutch; Hindi; Swahili;
Latin; Basque; Danish""",
    "hobby": """playing chess; mending old radios; long walks; collecting stamps; baking bread; painting birds; reading
novels; singing in a choir; fishing; solving puzzles; growing roses; riding a bicycle; swimming in the lake; playing the cello""",
    "material": """oak; red clay; steel; brass; glass; grey stone; bamboo; leather; concrete; white marble; pine wood; tin;
wool; paper; copper; ivory; sand and lime; cast iron; rubber; linen""",
    "task": """measuring rain; storing grain; cutting stone; cooling milk; pumping water; teaching children; lifting
loads; printing maps; drying fruit; guiding ships; cleaning the air; sorting letters; watching the stars; saving energy;
reducing noise; treating wounds; finding leaks; counting birds; keeping the road free of ice; translating old texts""",
    "power": """diesel; steam; sunlight; two batteries; wind; a water wheel; natural gas; a small electric motor; wood
chips; compressed air; muscle power; a hand crank""",
    "colour": """dark green; bright red; pale blue; white; black; yellow; brown; silver grey; orange; violet""",
    "state": """badly rusted; in perfect order; closed to visitors; half finished; under repair; covered with moss;
cracked in two places; freshly cleaned; out of use; overloaded; well preserved; leaking a little; ready for use""",
    "weather": """mild; rainy; bitterly cold; dry and hot; foggy; windy; stormy; sunny; humid; grey and damp; snowy""",
    "part": """the inlet valve; the drive belt; the main bearing; the oil filter; the rear axle; the gasket; the pressure
sensor; the cooling fan; the fuel line; the spark plug; the drain plug; the control box; the lock nut; the gear wheel; the
outlet pipe; the cylinder head; the brake pad; the float switch; the seal ring; the heating coil; the rotor; the clamp;
the circuit board; the safety latch; the air hose; the thermostat""",
    "implement": """a hex key; a torque wrench; a soft brush; a flat screwdriver; a pair of pliers; a rubber mallet; a puller; a
box spanner; a heat gun; a plastic scraper; a suction cup; two levers""",
    "cause": """the voltage drops; sand gets into the pipe; the bolts were loose; the software was out of date; a mouse had
chewed the wire; the oil ran dry; ice blocked the inlet; somebody forgot to close the lid; the supplier sent the wrong size;
the permit had not arrived; the ground was too soft; two members fell ill; the budget was cut; the test results were lost;
lightning struck the mast; the seal had dried out; the crew went on strike; a storm tore the cover""",
    "action": """turn it by hand and try again; switch off the mains; pour in warm water; wait ten minutes and restart;
call the service line; tighten the screws crosswise; rinse it with vinegar; let the steam out slowly; put in a new seal;
lower the speed; clean the contacts with alcohol; open the bleed screw""",
    "ingredient": """flour; sugar; butter; rice; milk; onions; lentils; salt; yeast; cream; carrots; olive oil; vinegar;
honey; ground almonds; potatoes; chicken stock; tomatoes; garlic; cheese; spinach; beans; oats; raisins; cinnamon; dough;
sauce; mushrooms""",
    "party": """the tenant; the landlord; the buyer; the seller; the employer; the employee; the insurer; the licensee;
the contractor; the customer; the lender; the borrower; the agency; the carrier; the heirs; the association""",
    "duty": """return all keys; keep the stairs clean; sublet the rooms; insure the goods; inform the other side in writing;
disclose trade secrets; heat the building in winter; bear the cost of repairs; deliver free of defects; store data abroad;
keep pets; hand over the documents; appoint a deputy; use the name in advertisements; pay within the month; lock the gate""",
    "diet": """small fish; acorns; beetles; grass and herbs; berries; snails; seaweed; young leaves; seeds; frogs; nectar;
earthworms; dead wood; mice""",
    "habitat": """dry forests; shallow lakes; cliffs by the sea; hollow trees; wet meadows; mountain caves; reed beds; city
parks; the open desert; deep rivers; hedges and thickets; coral reefs""",
    "decision": """to wait until spring; against any change; to hire two more people; to ask for a second opinion; in favour
of the cheaper offer; to close the site; to raise the price; to share the costs; to start again from scratch; to sell the
land; for a trial of six weeks; to publish the figures""",
    "vessel": """museum; tower; bridge; pump; engine; telescope; statue; drill; crane; lantern; organ; boat; kiln; gate; loom;
printer; fountain; probe; robot; bell; mill; oven; camera; clock; wagon""",
    "org": """Institute; Labs; Works; Museum; Society; Press; Foundation; University; Observatory; Company; Systems; Group;
Bank; Railway; Hospital; Theatre; School; Brewery; Orchestra; Union; Library; Shipyard; Farm; Hotel""",
    "weekday": """Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday""",
    "month": """January; February; March; April; May; June; July; August; September; October; November; December""",
}
