"""Words that say whether a stop after them ends a sentence: English first, then German, French, Spanish, Italian."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# No end: they stand in the middle of a phrase.
BEFORE_MORE = _words(
    """vs viz cf e.g i.e eg ie approx resp ca circa incl excl esp e.v fig figs eq eqs sect chap vol vols eds abb bd bzw
    bspw z.b d.h u.a o.ä i.d.r s.o s.u v.a ggf evtl vgl sog inkl zzgl mio mrd tsd nr p.ex c.-à-d núm pág págs p.ej"""
)
# No end with a capital: titles before a name. Without one they are other words: "one more rep."
BEFORE_NAME = _words(
    """mr mrs ms messrs dr prof hr fr frl mme mlle st ste sr sra srta capt col gen lt sgt maj cmdr adm rev hon gov sen
    rep pres supt dott sig ing arch avv dipl mag"""
)
# No end before a number: "No. 5", but "He said no. The valve …"
BEFORE_NUMBER = _words(
    "no nos p pp pg n par para art abs tab sec ch ed app ex item line lines max min s kap ziff v"
)
# Perhaps the end: only if the next word often begins a sentence.
PERHAPS_LAST = _words(
    """inc ltd llc plc jr esq ph.d m.d b.a m.a b.sc m.sc d.c u.s u.k u.n e.u u.s.a a.m p.m al et univ assn dept
    c.e b.c a.d i.v"""
)
# The same with a capital: "Sun. 3 May", but "in the sun."
PERHAPS_LAST_NAME = _words(
    "co corp bros mt jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun ave blvd rd"
)
STARTERS = _words(
    """the this that these those there here it its he she we they you i in on at by for from with as if when while after
    before since although though but and so yet however then thus hence our his her their my a an what why how who where
    no not all both each some many most such only even one two another to of during under
    der die das den dem des ein eine einen es er sie wir ihr ich im am an auf aus bei nach vor seit wenn als da doch
    aber und dann dies diese dieser dieses dabei damit danach wie was wer wo warum
    le la les un une il elle ils elles nous vous je ce cette ces en dans pour par sur avec mais
    el los las unos este esta estos con por para pero"""
)
# German and Dutch write ordinals with a stop: "am 3. Mai", "im 19. Jahrhundert".
AFTER_ORDINAL = _words(
    """januar jänner februar märz april mai juni juli august september oktober november dezember jahrhundert
    jahrhunderts jahrtausend weltkrieg weltkriegs weltkrieges auflage kapitel klasse etage stock stunde tag woche monat
    jahrestag geburtstag platz runde bundesliga januari februari maart"""
)
