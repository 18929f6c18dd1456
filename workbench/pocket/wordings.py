"""Relations and how people write and ask about them, as text: what the fact generator reads.

A block is a relation: ``name subject-kind object-kind``, then statements (``=``) and questions (``?``). The LAST
statement and the LAST question of every block are never trained on: they are the held-out wordings. Relations whose
name starts with ``x_`` are held out whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of one language; statements and questions hold ``{s}`` (subject) and ``{o}`` (object)."""

    name: str
    subject: str
    object: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether the whole relation is kept for evaluation."""
        return self.name.startswith("x_")


@cache
def relations(language: str) -> tuple[Relation, ...]:
    """All relations of a language ("en", "de", "fr", "es").

    >>> relations("en")[0].questions[0]
    'When was {s} founded?'
    """
    return tuple(_parse(block) for block in _TEXT[language].strip().split("\n\n"))


def _parse(block: str) -> Relation:
    head, *lines = block.strip().splitlines()
    name, subject, obj = head.split()
    statements = tuple(line[2:] for line in lines if line.startswith("= "))
    questions = tuple(line[2:] for line in lines if line.startswith("? "))
    return Relation(name, subject, obj, statements, questions)


_ENGLISH = """
founded org year
= {s} was founded in {o}.
= Founded in {o}, {s} is still active today.
= The history of {s} goes back to {o}.
= {s} first opened its doors in {o}.
= It was not until {o} that {s} came into being.
= {s} has existed since {o}.
? When was {s} founded?
? What year did {s} start?
? Since when has there been {s}?
? In what year was {s} established?
? founding year of {s}
? How old is {s}, that is, when did it begin?

founder org person
= {s} was founded by {o}.
= {o} founded {s}.
= {o} is the founder of {s}.
= Behind {s} stood {o}, who put up the first money.
= {o} set up {s} with a few friends.
= {s} owes its existence to {o}.
? Who founded {s}?
? Which person started {s}?
? Whose creation is {s}?
? Who established {s}?
? name of the founder, {s}
? Who brought {s} to life?

hq org place
= {s} is based in {o}.
= The head office of {s} is in {o}.
= {s} has its headquarters in {o}.
= {s} moved to {o} and stayed there.
= You will find {s} in {o}.
= The main building of {s} stands in {o}.
? Where is {s} based?
? In which city is {s} located?
? Where are the headquarters of {s}?
? What is the home town of {s}?
? seat of {s}
? Where can {s} be visited?

director org person
= {o} is the director of {s}.
= {s} is directed by {o}.
= {o} has led {s} for years.
= At the head of {s} is {o}.
= The board made {o} chief of {s}.
= {s} is run by {o}.
? Who directs {s}?
? Who is in charge of {s}?
? Who leads {s}?
? Who is the boss at {s}?
? Which person manages {s}?
? Who heads {s}?

staff org num
= {s} employs {o} people.
= About {o} people work at {s}.
= {s} has {o} employees.
= A staff of {o} keeps {s} going.
= The payroll of {s} lists {o} names.
= There are {o} workers at {s}.
? How many people work at {s}?
? How many employees does {s} have?
? What is the size of the workforce of {s}?
? How large is the team at {s}?
? number of staff, {s}
? How many persons are on the books of {s}?

budget org money
= The yearly budget of {s} is {o}.
= {s} spends {o} every year.
= Running {s} costs {o} a year.
= Each year {s} gets by on {o}.
= The accounts of {s} show annual outlays of {o}.
= {s} has an annual budget of {o}.
? What is the budget of {s}?
? How much does {s} spend each year?
? How much money does {s} need in a year?
? What are the yearly expenses of {s}?
? How high are the costs at {s}?

revenue org money
= {s} earned {o} last year.
= Sales at {s} reached {o}.
= The income of {s} rose to {o}.
= Customers brought {s} a turnover of {o}.
= {s} took in {o}.
? How much did {s} earn?
? What was the revenue of {s}?
? How high was the turnover of {s}?
? What income did {s} report?
? How much money came in at {s}?

product org noun
= {s} makes a {o}.
= The best known product of {s} is the {o}.
= {s} has been selling the {o} for a long time.
= From the workshops of {s} comes the {o}.
= {s} manufactures the {o}.
? What does {s} make?
? Which product is {s} known for?
? What can one buy from {s}?
? What goods does {s} produce?
? What comes out of the factory of {s}?

member org org
= {s} is a member of {o}.
= {s} belongs to {o}.
= {s} joined {o}.
= Among the partners of {o} is {s}.
= {o} accepted {s} into its ranks.
? What is {s} a member of?
? Which body does {s} belong to?
? Which association did {s} enter?
? To what group does {s} count?
? Of which union is {s} part?

hours org time
= {s} opens at {o}.
= The doors of {s} are unlocked at {o}.
= Visitors may enter {s} from {o}.
= At {o} the first guests come into {s}.
= {s} receives the public from {o} on.
? What time does {s} open?
? From when can one enter {s}?
? When do the doors of {s} open?
? opening time {s}
? How early can visitors come to {s}?

phone org phone
= {s} can be reached at {o}.
= The telephone number of {s} is {o}.
= Call {s} on {o}.
= For questions to {s}, dial {o}.
= {s} answers calls at {o}.
? What is the phone number of {s}?
? How can I call {s}?
? Which number reaches {s}?
? telephone {s}
? What should I dial for {s}?

born person date
= {s} was born on {o}.
= {s}, born {o}, grew up in a small town.
= The birth date of {s} is {o}.
= On {o} a child was given the name {s}.
= The life of {s} began on {o}.
= {s} came into the world on {o}.
? When was {s} born?
? What is the date of birth of {s}?
? When is the birthday of {s}?
? How old is {s}?
? birth {s}
? On what day did {s} see the light of day?

died person year
= {s} died in {o}.
= {s} passed away in {o}.
= The death of {s} in {o} was widely mourned.
= In {o} {s} was laid to rest.
= {s} lived until {o}.
? When did {s} die?
? In which year did {s} pass away?
? What was the year of the death of {s}?
? Until when was {s} alive?
? When was {s} buried?

birthplace person place
= {s} was born in {o}.
= {s} comes from {o}.
= {s} is a native of {o}.
= {o} is where {s} grew up.
= {s} spent a childhood in {o}.
= The home town of {s} is {o}.
? Where was {s} born?
? Where does {s} come from?
? What is the birthplace of {s}?
? In which town did {s} grow up?
? origin of {s}
? From which town is {s}?

job person profession
= {s} is a {o}.
= {s} earns a living as a {o}.
= By trade {s} is a {o}.
= {s} trained to become a {o}.
= After school {s} found work as a {o}.
= {s} works as a {o}.
? What is the profession of {s}?
? What does {s} do for a living?
? What job does {s} have?
? What is the occupation of {s}?
? What work does {s} do?

employer person org
= {s} works for {o}.
= {s} is employed by {o}.
= {s} joined {o} after school.
= {o} hired {s}.
= {s} is on the staff of {o}.
= {s} has a job at {o}.
? Where does {s} work?
? Who employs {s}?
? Which company does {s} work for?
? What is the employer of {s}?
? Who pays the wages of {s}?
? At which firm is {s}?

studied person noun
= {s} studied the {o}.
= {s} is known for research on the {o}.
= {s} spent years on the {o}.
= The thesis of {s} dealt with the {o}.
= {s} wrote at length about the {o}.
= The main subject of {s} was the {o}.
? What did {s} study?
? What did {s} do research on?
? What is {s} an expert in?
? Which topic occupied {s}?
? What field did {s} work in?

spouse person person
= {s} married {o}.
= {s} is married to {o}.
= {s} and {o} were married for decades.
= {s} took {o} as a partner for life.
= The wedding of {s} and {o} was a quiet one.
= {s} was the spouse of {o}.
? Who did {s} marry?
? Who is the partner of {s}?
? Who is {s} married to?
? What is the name of the husband or wife of {s}?
? With whom did {s} share a home?

child person person
= {s} has a daughter named {o}.
= {o} is the child of {s}.
= {s} raised {o} alone.
= {o} was brought up by {s}, a loving parent.
= {s} is the mother of {o}.
? What is the name of the child of {s}?
? Who is the daughter or son of {s}?
? Whom did {s} raise?
? Whose parent is {s}?
? Which child does {s} have?

prize person noun
= {s} received a prize for the {o}.
= {s} won an award for the {o}.
= A medal was given to {s} for the {o}.
= The jury praised {s} for the {o}.
= {s} was honoured for the {o}.
? Why did {s} receive a prize?
? What did {s} win an award for?
? What earned {s} a medal?
? For which achievement was {s} decorated?
? What brought {s} the distinction?

language person language
= {s} speaks {o}.
= {s} learned {o} as a child.
= At home {s} talks in {o}.
= The mother tongue of {s} is {o}.
= {s} is fluent in {o}.
? What language does {s} speak?
? Which tongue did {s} learn?
? In which language does {s} talk?
? What is the native language of {s}?
? What can {s} speak?

hobby person hobby
= {s} enjoys {o}.
= In the evening {s} likes {o}.
= {s} spends free time with {o}.
= Nothing pleases {s} more than {o}.
= The hobby of {s} is {o}.
? What does {s} enjoy?
? What does {s} do in the evening?
? How does {s} spend leisure time?
? What is the favourite pastime of {s}?
? What is {s} fond of?

school person org
= {s} attended {o}.
= {s} was a student at {o}.
= {s} took a degree at {o}.
= {o} counts {s} among its graduates.
= {s} was educated at {o}.
? Where did {s} study?
? Which school did {s} go to?
? Where did {s} get a degree?
? From where did {s} graduate?
? Where was {s} taught?

inventor thing person
= {s} was invented by {o}.
= {o} invented {s}.
= {o} designed {s}.
= The plans of {s} were drawn by {o}.
= {s} was dreamt up by {o}.
= {s} was the idea of {o}.
? Who invented {s}?
? Who designed {s}?
? Who came up with {s}?
? Whose invention is {s}?
? Who is the creator of {s}?
? Who thought of {s}?

built thing year
= {s} was built in {o}.
= {s} was completed in {o}.
= Work on {s} ended in {o}.
= {s} has been standing since {o}.
= Builders finished {s} in {o}.
= {s} dates from {o}.
? When was {s} built?
? In what year was {s} finished?
? How old is {s}?
? What is the construction year of {s}?
? Since when has {s} stood?
? From which year is {s}?

size thing length
= {s} measures {o}.
= {s} is {o} long.
= The length of {s} is {o}.
= From end to end {s} reaches {o}.
= At {o}, {s} is unusual.
? How long is {s}?
? What is the length of {s}?
? How big is {s}?
? How far does {s} extend?
? What are the dimensions of {s}?

weight thing weight
= {s} weighs {o}.
= The weight of {s} is {o}.
= On the scales {s} shows {o}.
= With its {o}, {s} can hardly be lifted.
= {s} has a mass of {o}.
? How much does {s} weigh?
? How heavy is {s}?
? What is the mass of {s}?
? What do the scales show for {s}?
? weight in kilograms, {s}

site thing place
= {s} stands in {o}.
= {s} can be found near {o}.
= {s} is kept in {o}.
= Visitors see {s} in {o}.
= {s} lies close to {o}.
? Where is {s}?
? Where can one see {s}?
? What is the location of {s}?
? In which town is {s}?
? Where must I go to look at {s}?

material thing material
= {s} is made of {o}.
= {s} consists of {o}.
= The material of {s} is {o}.
= Workers shaped {s} from {o}.
= For {s} the makers chose {o}.
= {s} is mostly {o}.
? What is {s} made of?
? What does {s} consist of?
? Which material was used for {s}?
? From what was {s} produced?
? What is the substance of {s}?

owner thing org
= {s} belongs to {o}.
= {s} is owned by {o}.
= {o} owns {s}.
= {o} bought {s}.
= {s} passed into the hands of {o}.
= {s} is the property of {o}.
? Who owns {s}?
? To whom does {s} belong?
? Who purchased {s}?
? Whose property is {s}?
? Which organisation possesses {s}?

price thing money
= {s} cost {o}.
= The price of {s} was {o}.
= {s} was sold for {o}.
= Buyers paid {o} for {s}.
= One has to put down {o} for {s}.
= {s} is on sale at {o}.
? How much did {s} cost?
? What was paid for {s}?
? What is the price of {s}?
? How expensive is {s}?
? For what sum can one have {s}?

purpose thing task
= {s} is used for {o}.
= {s} serves for {o}.
= The purpose of {s} is {o}.
= People need {s} for {o}.
= {s} was put there for {o}.
= {s} helps with {o}.
? What is {s} used for?
? What is the purpose of {s}?
? Why do people need {s}?
? What job does {s} do?
? What is {s} good for?

power thing power
= {s} runs on {o}.
= {s} is driven by {o}.
= The energy for {s} comes from {o}.
= {o} keeps {s} going.
= {s} is powered by {o}.
? What does {s} run on?
? What drives {s}?
? What is the source of energy of {s}?
? What powers {s}?
? How is {s} supplied with energy?

colour thing colour
= {s} is painted {o}.
= The colour of {s} is {o}.
= From afar {s} looks {o}.
= Somebody gave {s} a coat of {o}.
= {s} is {o} all over.
? What colour is {s}?
? How is {s} painted?
? What does {s} look like from afar?
? Which paint was chosen for {s}?
? In which shade does {s} appear?

state thing state
= {s} is {o}.
= {s} has been {o} since last week.
= The last check found {s} {o}.
= Inspectors describe {s} as {o}.
= At present {s} is {o}.
? What is the state of {s}?
? In what condition is {s}?
? What did the inspection of {s} show?
? How is {s} doing?
? What is known about the shape {s} is in?

neighbour place place
= {s} borders {o}.
= {s} is next to {o}.
= {s} lies north of {o}.
= From {s} one sees the roofs of {o}.
= The neighbour of {s} is {o}.
? What borders {s}?
? Which place is next to {s}?
? What lies near {s}?
? Which town is close to {s}?
? What adjoins {s}?

population place num
= {s} has {o} inhabitants.
= The population of {s} is {o}.
= {o} people live in {s}.
= Some {o} residents call {s} home.
= At the last count {s} was home to {o} souls.
= {s} is inhabited by {o} people.
? How many people live in {s}?
? What is the population of {s}?
? How many inhabitants does {s} have?
? How large is {s} in terms of people?
? number of residents, {s}
? How populous is {s}?

mayor place person
= {o} is the mayor of {s}.
= The mayor of {s} is {o}.
= {s} elected {o} as mayor.
= The town hall of {s} is led by {o}.
= Voters in {s} put {o} into office.
= In {s}, {o} became mayor.
? Who is the mayor of {s}?
? Who governs {s}?
? Who won the election in {s}?
? Who leads the town hall of {s}?
? Who is the head of the council of {s}?

famous place noun
= {s} is famous for its {o}.
= {s} is known for the {o}.
= Tourists visit {s} because of the {o}.
= What draws people to {s} is the {o}.
= The pride of {s} is its {o}.
? What is {s} famous for?
? Why do tourists visit {s}?
? What attracts people to {s}?
? What is the main sight of {s}?
? What is worth seeing in {s}?

height place length
= {s} lies at a height of {o}.
= The elevation of {s} is {o}.
= {s} sits {o} above the sea.
= A climb of {o} from the coast leads to {s}.
= {s} is {o} high.
? What is the elevation of {s}?
? How high is {s}?
? How far above the sea is {s}?
? At what altitude does {s} lie?
? How many metres up is {s}?

climate place weather
= The weather in {s} is {o}.
= {s} is {o} for most of the year.
= Winters in {s} are {o}.
= Those who live in {s} are used to {o} days.
= {s} has a climate that is {o}.
? What is the weather like in {s}?
? What are the winters like in {s}?
? How is the climate of {s}?
? What must travellers to {s} expect from the sky?
? Is {s} warm or cold?

river place name
= The river {o} flows through {s}.
= {s} lies on the banks of the {o}.
= In {s} the {o} turns mill wheels.
= Bridges over the {o} join both halves of {s}.
= The {o} crosses {s}.
? Which river flows through {s}?
? On what water does {s} lie?
? What stream runs through {s}?
? What is the name of the river at {s}?
? Which waterway crosses {s}?

industry place noun
= Most people in {s} live from the {o}.
= The chief trade of {s} is the {o}.
= {s} grew rich through the {o}.
= The economy of {s} rests on the {o}.
= {s} depends on the {o}.
? What do people in {s} live from?
? What made {s} wealthy?
? What is the main business of {s}?
? What supports the economy of {s}?
? On what does {s} depend?

distance place length
= It is {o} from {s} to the coast.
= {s} is {o} away from the sea.
= Between {s} and the shore lie {o}.
= The road from {s} down to the beach is {o} long.
= Travellers from {s} cover {o} before they see the sea.
? How far is {s} from the sea?
? What is the distance between {s} and the coast?
? How long is the way from {s} to the shore?
? How far must one go from {s} to reach the beach?
? How remote is {s} from the water?

torque part force
= Tighten {s} to {o}.
= The correct setting of {s} is {o}.
= {s} must be fastened with {o}.
= Set {s} to {o}, never higher.
= Do not exceed {o} on {s}.
? How tight should {s} be?
? What is the right setting of {s}?
? How firmly must {s} be fastened?
? What is the limit for {s}?
? Which value applies to {s}?

service part period
= Replace {s} every {o}.
= {s} should be changed every {o}.
= Check {s} every {o}.
= The service interval of {s} is {o}.
= After {o}, {s} is due for exchange.
? How often must {s} be replaced?
? When should {s} be changed?
? What is the maintenance interval of {s}?
? How long does {s} last?
? At what intervals is {s} due?

tool part tool
= Loosen {s} with {o}.
= Remove {s} using {o}.
= To take out {s} you need {o}.
= Work on {s} with {o} only.
= Open {s} by means of {o}.
? What do I need to remove {s}?
? Which tool loosens {s}?
? With what can {s} be taken out?
? What equipment is required for {s}?
? How do I get {s} off?

fault part cause
= {s} fails when {o}.
= If {o}, {s} stops working.
= {s} broke down because {o}.
= The trouble with {s} began when {o}.
= {s} was damaged since {o}.
? Why did {s} fail?
? What makes {s} stop working?
? What caused the defect of {s}?
? What is the reason for the trouble with {s}?
? How come {s} no longer works?

remedy part action
= If {s} is stuck, {o}.
= When {s} leaks, {o}.
= In case {s} gets too hot, {o}.
= A blocked {s} is no disaster: {o}.
= Should {s} make a noise, {o}.
? What should I do if {s} is stuck?
? What helps when {s} leaks?
? How do I deal with trouble at {s}?
? What is the remedy for problems with {s}?
? What to do about {s}?

reading part value
= {s} shows {o}.
= The reading at {s} is {o}.
= At {s} the crew measured {o}.
= {s} reported {o} this morning.
= The display of {s} stood at {o}.
? What does {s} show?
? Which value was measured at {s}?
? What is the reading of {s}?
? What did {s} report?
? What was displayed on {s}?

amount ingredient amount
= Add {o} of {s}.
= Stir in {o} of {s}.
= You need {o} of {s} for this dish.
= Weigh out {o} of {s} and set it aside.
= The recipe calls for {o} of {s}.
? How much {s} is needed?
? What quantity of {s} goes in?
? How much {s} do I add?
? amount of {s}
? How much {s} must I buy?

cooking ingredient minutes
= Cook the {s} for {o}.
= Let the {s} simmer for {o}.
= The {s} must rest for {o}.
= Leave the {s} in the oven for {o}.
= Fry the {s} for {o}.
? How long does the {s} cook?
? How many minutes does the {s} need?
? For what time is the {s} heated?
? How long must I wait for the {s}?
? When is the {s} done?

substitute ingredient ingredient
= Instead of {s} you can use {o}.
= If there is no {s} at hand, take {o}.
= {o} does the same job as {s}.
= Cooks who dislike {s} choose {o}.
= {s} may be replaced by {o}.
? What can I use instead of {s}?
? What replaces {s}?
? What is a substitute for {s}?
? What do I take if I have no {s}?
? Which alternative to {s} is there?

duty party duty
= {s} shall {o}.
= {s} must {o}.
= {s} is obliged to {o}.
= It falls to {s} to {o}.
= {s} undertakes to {o}.
= It is the responsibility of {s} to {o}.
? What must {s} do?
? What are the obligations of {s}?
? What is {s} required to do?
? Which duty does {s} have?
? What did {s} promise in the contract?

forbidden party duty
= {s} may not {o}.
= {s} is not allowed to {o}.
= Under no circumstances may {s} {o}.
= {s} shall refrain from any attempt to {o}.
= It is forbidden for {s} to {o}.
? What is {s} not allowed to do?
? What is forbidden to {s}?
? What must {s} avoid?
? Which acts are prohibited for {s}?
? What may {s} never do?

deadline party period
= {s} has {o} to object.
= Objections of {s} must arrive within {o}.
= {s} may withdraw within {o}.
= The notice period for {s} is {o}.
= After {o} the claims of {s} expire.
? How long does {s} have to object?
? What is the deadline for {s}?
? Within what time may {s} withdraw?
? How much notice must {s} give?
? When do the rights of {s} lapse?

fee party money
= {s} pays a fee of {o}.
= {s} owes {o} on signing.
= The deposit of {s} amounts to {o}.
= A fine of {o} is due from {s}.
= {s} is charged {o}.
? How much does {s} pay?
? What fee is due from {s}?
? What sum does {s} owe?
? How high is the deposit of {s}?
? What is {s} charged?

diet animal food
= {s} feeds on {o}.
= {s} eats {o}.
= The diet of {s} consists of {o}.
= {s} lives almost entirely on {o}.
= {s} prefers {o}.
? What does {s} eat?
? What is the diet of {s}?
? What does {s} feed on?
? What food does {s} need?
? What does {s} like to swallow?

habitat animal habitat
= {s} lives in {o}.
= {s} is found in {o}.
= The home of {s} is {o}.
= {s} builds its nest in {o}.
= {s} occurs in {o}.
? Where does {s} live?
? What is the habitat of {s}?
? Where can one meet {s}?
? In what surroundings is {s} at home?
? Where would one look for {s}?

lifespan animal period
= {s} lives for {o}.
= {s} reaches an age of {o}.
= The life of {s} lasts {o}.
= After {o} {s} usually dies.
= {s} can grow as old as {o}.
? How long does {s} live?
? How old does {s} get?
? What is the lifespan of {s}?
? What age does {s} reach?
? For how much time is {s} alive?

leader project person
= {o} leads {s}.
= {s} is coordinated by {o}.
= Responsibility for {s} lies with {o}.
= {o} took over {s}.
= The person behind {s} is {o}.
? Who leads {s}?
? Who is responsible for {s}?
? Who coordinates {s}?
? Who took charge of {s}?
? Who is behind {s}?

due project date
= {s} is due on {o}.
= {s} must be finished by {o}.
= The deadline of {s} is {o}.
= The team hands in {s} on {o}.
= {s} ends on {o}.
? When is {s} due?
? By when must {s} be finished?
? What is the deadline of {s}?
? When does the team deliver {s}?
? On what day does {s} end?

goal project task
= The aim of {s} is {o}.
= {s} is about {o}.
= With {s} the group wants progress in {o}.
= {s} was started for {o}.
= {s} is devoted to {o}.
? What is the aim of {s}?
? What is {s} about?
? What should {s} achieve?
? Why was {s} started?
? To what is {s} devoted?

decision project decision
= For {s} the committee decided {o}.
= It was agreed {o} in the matter of {s}.
= On {s} the meeting resolved {o}.
= The vote on {s} ended with the decision {o}.
= Regarding {s}, the board chose {o}.
? What was decided about {s}?
? What was the outcome of the vote on {s}?
? What did the committee agree on {s}?
? How did the meeting settle {s}?
? What did the board choose for {s}?

delay project cause
= {s} was delayed because {o}.
= {s} had to wait since {o}.
= {s} came to a halt when {o}.
= Nobody could go on with {s}, as {o}.
= {s} is behind schedule because {o}.
? Why was {s} delayed?
? What held up {s}?
? What is the reason that {s} is late?
? Why did {s} come to a halt?
? What kept {s} from going on?

author book person
= {o} wrote {s}.
= {s} was written by {o}.
= {s} is the work of {o}.
= {s} came from the pen of {o}.
= The author of {s} is {o}.
? Who wrote {s}?
? Who is the author of {s}?
? From whose pen is {s}?
? Which writer produced {s}?
? By whom is {s}?

published book year
= {s} appeared in {o}.
= {s} was published in {o}.
= Readers first held {s} in their hands in {o}.
= {s} came out in {o}.
= The first edition of {s} is from {o}.
? When did {s} appear?
? When was {s} published?
? What is the year of publication of {s}?
? When could people first read {s}?
? In what year did {s} come out?

topic book noun
= {s} deals with the {o}.
= {s} tells the story of a {o}.
= In {s} everything turns on the {o}.
= The subject of {s} is the {o}.
= {s} describes the {o}.
? What does {s} deal with?
? What is the subject of {s}?
? What story does {s} tell?
? What is {s} about?
? What can one read about in {s}?

pages book num
= {s} has {o} pages.
= {s} runs to {o} pages.
= On its {o} pages {s} leaves nothing out.
= {s} fills {o} pages.
= {s} is {o} pages thick.
? How many pages does {s} have?
? How long is {s}?
? How thick is {s}?
? What is the page count of {s}?
? How extensive is {s}?

x_launch thing date
= {s} was launched on {o}.
= The launch of {s} took place on {o}.
? When was {s} launched?
? On what date did {s} set off?

x_teacher person person
= {s} was taught by {o}.
= The teacher of {s} was {o}.
? Who taught {s}?
? Who gave lessons to {s}?

x_exports place noun
= {s} exports the {o}.
= Ships carry the {o} from {s} abroad.
? What does {s} export?
? What is sent abroad from {s}?

x_speed thing speed
= {s} moves at {o}.
= The top speed of {s} is {o}.
? How fast is {s}?
? What pace does {s} reach?

x_sponsor org org
= {s} is sponsored by {o}.
= {o} pays for {s}.
? Who sponsors {s}?
? Who gives money to {s}?

x_storage ingredient period
= Fresh {s} keeps for {o}.
= {s} stays good for {o}.
? How long does {s} keep?
? When does {s} go bad?

x_insurer project org
= {s} is insured with {o}.
= {o} covers the risks of {s}.
? Who insures {s}?
? With whom is {s} insured?
"""

_GERMAN = """
founded org year
= {s} wurde {o} gegründet.
= Die Gründung von {s} fällt in das Jahr {o}.
= Seit {o} gibt es {s}.
= {s} besteht seit {o}.
? Wann wurde {s} gegründet?
? In welchem Jahr entstand {s}?
? Seit wann gibt es {s}?
? Wie alt ist {s}?

director org person
= {s} wird von {o} geleitet.
= {o} ist Leiter von {s}.
= An der Spitze von {s} steht {o}.
= {o} führt {s}.
? Wer leitet {s}?
? Wer ist der Chef von {s}?
? Wer steht {s} vor?
? Wer hat bei {s} das Sagen?

hq org place
= {s} hat den Sitz in {o}.
= Das Hauptgebäude von {s} steht in {o}.
= {s} zog nach {o}.
= {s} ist in {o} zu Hause.
? Wo hat {s} den Sitz?
? In welcher Stadt befindet sich {s}?
? Wo findet man {s}?
? Wo liegt {s}?

birthplace person place
= {s} wurde in {o} geboren.
= {s} stammt aus {o}.
= {s} wuchs in {o} auf.
= Die Heimat von {s} ist {o}.
? Wo wurde {s} geboren?
? Woher kommt {s}?
? Aus welchem Ort stammt {s}?
? Was ist der Geburtsort von {s}?

population place num
= {s} hat {o} Einwohner.
= In {s} leben {o} Menschen.
= {s} zählt {o} Bewohner.
= Die Bevölkerung von {s} beträgt {o}.
? Wie viele Einwohner hat {s}?
? Wie viele Menschen leben in {s}?
? Wie groß ist die Bevölkerung von {s}?
? Wie viele wohnen in {s}?

price thing money
= {s} kostet {o}.
= Für {s} zahlt man {o}.
= Der Preis von {s} beträgt {o}.
= {s} wurde für {o} verkauft.
? Wie viel kostet {s}?
? Was ist der Preis von {s}?
? Wie teuer ist {s}?
? Was zahlt man für {s}?

weight thing weight
= {s} wiegt {o}.
= Das Gewicht von {s} beträgt {o}.
= {s} bringt {o} auf die Waage.
? Wie schwer ist {s}?
? Wie viel wiegt {s}?
? Welches Gewicht hat {s}?

author book person
= {o} schrieb {s}.
= {s} stammt aus der Feder von {o}.
= {s} wurde von {o} verfasst.
? Wer schrieb {s}?
? Wer ist der Autor von {s}?
? Von wem ist {s}?

due project date
= {s} endet am {o}.
= {s} muss bis {o} fertig sein.
= Der Termin für {s} ist {o}.
? Wann endet {s}?
? Bis wann muss {s} fertig sein?
? Welche Frist gilt für {s}?

inventor thing person
= {o} erfand {s}.
= {s} wurde von {o} entworfen.
= Die Idee zu {s} hatte {o}.
? Wer erfand {s}?
? Wer hat {s} entworfen?
? Wem verdanken wir {s}?
"""

_FRENCH = """
founded org year
= {s} a été fondé en {o}.
= La création de {s} remonte à {o}.
= {s} a ouvert ses portes en {o}.
= {s} existe depuis {o}.
? Quand {s} a-t-il été fondé ?
? En quelle année {s} est-il né ?
? De quand date {s} ?
? Depuis quand existe {s} ?

director org person
= {s} est dirigé par {o}.
= {o} est à la tête de {s}.
= Le directeur de {s} s'appelle {o}.
= {o} dirige {s}.
? Qui dirige {s} ?
? Qui est le directeur de {s} ?
? Qui est le chef de {s} ?
? Qui mène {s} ?

hq org place
= {s} a son siège à {o}.
= Le bâtiment principal de {s} se trouve à {o}.
= {s} s'est installé à {o}.
= {s} est établi à {o}.
? Où est le siège de {s} ?
? Dans quelle ville se trouve {s} ?
? Où trouve-t-on {s} ?
? Où {s} est-il installé ?

birthplace person place
= {s} est né à {o}.
= {s} vient de {o}.
= {s} a grandi à {o}.
= La ville natale de {s} est {o}.
? Où est né {s} ?
? D'où vient {s} ?
? Quelle est la ville d'origine de {s} ?
? Où {s} a-t-il vu le jour ?

population place num
= {s} compte {o} habitants.
= La population de {s} est de {o}.
= {o} personnes vivent à {s}.
= {s} est peuplé de {o} habitants.
? Combien d'habitants compte {s} ?
? Combien de personnes vivent à {s} ?
? Quelle est la population de {s} ?
? Combien de gens habitent {s} ?

price thing money
= {s} coûte {o}.
= Le prix de {s} est de {o}.
= On a payé {o} pour {s}.
= {s} a été vendu {o}.
? Combien coûte {s} ?
? Quel est le prix de {s} ?
? Combien faut-il payer pour {s} ?
? À quel prix trouve-t-on {s} ?

weight thing weight
= {s} pèse {o}.
= Le poids de {s} est de {o}.
= {s} fait {o} sur la balance.
? Combien pèse {s} ?
? Quel est le poids de {s} ?
? Quelle est la masse de {s} ?

author book person
= {o} a écrit {s}.
= {s} est l'œuvre de {o}.
= L'auteur de {s} est {o}.
? Qui a écrit {s} ?
? Qui est l'auteur de {s} ?
? De qui est {s} ?

due project date
= {s} se termine le {o}.
= {s} doit être prêt pour le {o}.
= La date limite de {s} est le {o}.
? Quand se termine {s} ?
? Pour quand {s} doit-il être prêt ?
? Quel est le délai de {s} ?

inventor thing person
= {o} a inventé {s}.
= {s} a été conçu par {o}.
= On doit {s} à {o}.
? Qui a inventé {s} ?
? Qui a conçu {s} ?
? Qui est le créateur de {s} ?
"""

_SPANISH = """
founded org year
= {s} fue fundado en {o}.
= La historia de {s} comenzó en {o}.
= {s} abrió sus puertas en {o}.
= {s} existe desde {o}.
? ¿Cuándo fue fundado {s}?
? ¿En qué año comenzó {s}?
? ¿De qué año es {s}?
? ¿Desde cuándo existe {s}?

director org person
= {s} es dirigido por {o}.
= {o} está al frente de {s}.
= El director de {s} se llama {o}.
= {o} dirige {s}.
? ¿Quién dirige {s}?
? ¿Quién es el director de {s}?
? ¿Quién es el jefe de {s}?
? ¿Quién manda en {s}?

hq org place
= {s} tiene su sede en {o}.
= El edificio principal de {s} está en {o}.
= {s} se trasladó a {o}.
= {s} está ubicado en {o}.
? ¿Dónde está la sede de {s}?
? ¿En qué ciudad se encuentra {s}?
? ¿Dónde se halla {s}?
? ¿Dónde se puede visitar {s}?

birthplace person place
= {s} nació en {o}.
= {s} viene de {o}.
= {s} creció en {o}.
= La ciudad natal de {s} es {o}.
? ¿Dónde nació {s}?
? ¿De dónde viene {s}?
? ¿Cuál es el lugar de origen de {s}?
? ¿De qué ciudad es {s}?

population place num
= {s} tiene {o} habitantes.
= La población de {s} es de {o}.
= En {s} viven {o} personas.
= {s} está poblado por {o} personas.
? ¿Cuántos habitantes tiene {s}?
? ¿Cuántas personas viven en {s}?
? ¿Cuál es la población de {s}?
? ¿Cuánta gente reside en {s}?

price thing money
= {s} cuesta {o}.
= El precio de {s} es de {o}.
= Se pagaron {o} por {s}.
= {s} se vendió por {o}.
? ¿Cuánto cuesta {s}?
? ¿Cuál es el precio de {s}?
? ¿Cuánto hay que pagar por {s}?
? ¿Qué vale {s}?

weight thing weight
= {s} pesa {o}.
= El peso de {s} es de {o}.
= {s} marca {o} en la balanza.
? ¿Cuánto pesa {s}?
? ¿Cuál es el peso de {s}?
? ¿Qué masa tiene {s}?

author book person
= {o} escribió {s}.
= {s} es obra de {o}.
= El autor de {s} es {o}.
? ¿Quién escribió {s}?
? ¿Quién es el autor de {s}?
? ¿De quién es {s}?

due project date
= {s} termina el {o}.
= {s} debe estar listo para el {o}.
= El plazo de {s} vence el {o}.
? ¿Cuándo termina {s}?
? ¿Para cuándo debe estar listo {s}?
? ¿Cuál es la fecha límite de {s}?

inventor thing person
= {o} inventó {s}.
= {s} fue diseñado por {o}.
= La idea de {s} fue de {o}.
? ¿Quién inventó {s}?
? ¿Quién diseñó {s}?
? ¿A quién se debe {s}?
"""

_TEXT = {"en": _ENGLISH, "de": _GERMAN, "fr": _FRENCH, "es": _SPANISH}
