"""The words of the miniature world: concepts with their synonyms, and the kinds they belong to.

It holds real English words, but it proves nothing about English: the world is a toy whose meanings we know because we
wrote them. A line ``kind: first/second third`` names a kind (its hypernym, itself a usable word) and its concepts; the
words of one concept, joined by ``/``, mean the same. A star marks a mass noun, which has no plural.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Concepts:
    """A table of concepts of one part of speech; a concept is named by its first word."""

    words: dict[str, tuple[str, ...]]
    kinds: dict[str, str]
    members: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, table: str) -> Concepts:
        """Read ``kind: concept/synonym concept`` lines."""
        words: dict[str, tuple[str, ...]] = {}
        kinds: dict[str, str] = {}
        members: dict[str, tuple[str, ...]] = {}
        for line in table.strip().splitlines():
            kind, _, rest = line.replace("*", "").partition(":")
            entries = [tuple(entry.split("/")) for entry in rest.split()]
            members[kind] = tuple(entry[0] for entry in entries)
            for entry in [(kind,), *entries]:
                words.setdefault(entry[0], entry)
                kinds.setdefault(entry[0], kind)
        return cls(words, kinds, members)

    def expressions(self) -> list[str]:
        """List the words of all concepts."""
        return [word for concepts in self.members.values() for concept in concepts for word in self.words[concept]]


@dataclass(frozen=True)
class Topic:
    """What one corner of the world talks about."""

    task: str
    agents: tuple[str, ...]
    places: tuple[str, ...]
    actions: dict[str, tuple[str, ...]]
    tenses: tuple[str, str, str]


_NOUNS = """
person: man/guy woman/lady boy/lad girl child/kid student/pupil teacher/instructor farmer artist/painter dancer
animal: dog/hound cat horse/pony bird rabbit/bunny monkey sheep tiger elephant squirrel goat
food*: bread* cake apple soup* pizza rice* egg sandwich potato cheese* carrot cookie/biscuit fish* onion mushroom
instrument: guitar piano violin/fiddle drum flute trumpet
vehicle: car/automobile bicycle/bike truck/lorry motorcycle bus boat/ship
toy: ball kite doll frisbee balloon
text: book letter magazine story/tale poem newspaper
official: minister president mayor senator governor judge diplomat/envoy lawmaker/legislator
institution: government/administration court parliament/congress army/military ministry council party
policy: law/legislation tax budget treaty/accord reform plan/proposal sanction tariff
businessman: manager/boss investor/shareholder analyst trader banker director owner/proprietor
company: bank firm/corporation airline factory/plant retailer supplier insurer
figure: price profit/earning share/stock wage/salary loss debt cost
product: phone/handset camera drug/medicine engine watch robot
employee: worker engineer clerk guard mechanic
technician: user developer/programmer administrator beginner/novice expert/specialist tester colleague/coworker
software*: program/application browser game driver plugin/extension database
device: computer/pc laptop printer screen/monitor keyboard router tablet
data*: file/document folder/directory photo/picture password message/email video/clip backup
cook: chef baker grandmother/grandma neighbour friend/buddy host
"""
_PLACES = """
outdoors: in.park in.garden/yard on.beach/shore in.street/road in.field/meadow in.forest/woods near.river/stream
indoors: in.house/home in.kitchen at.school in.office in.restaurant/cafe in.shop/store in.library
country: in.France in.China in.India in.Brazil in.Egypt in.Japan in.Germany in.Kenya
venue: in.capital at.summit/conference at.embassy at.airport at.border in.region/province
business: in.market at.headquarters in.city/town at.exchange at.fair
system: on.desktop on.server in.cloud in.network in.archive
cookware: in.oven/stove in.pan/skillet in.pot in.bowl/dish in.fridge/refrigerator on.grill/barbecue
"""
_VERBS = """
move: run/sprint walk/stroll jump/leap climb swim/paddle
rest: sleep/nap sit stand lie
express: laugh/giggle cry/weep sing dance
consume: eat/devour taste/sample swallow
divide: chop/slice/dice peel grate
heat: bake/roast boil/simmer fry grill warm
chill: freeze cool
combine: mix/stir/blend knead whisk
serve: offer season decorate/garnish
handle: throw/toss catch/grab kick carry/hold drop
operate: drive/steer ride repair/fix/mend wash/clean paint
perform: play practise tune
study: read/peruse write/compose translate
meet: chase/pursue follow watch/observe hug/embrace push help/assist greet/welcome bite lick
decide: approve/endorse reject/oppose sign propose/suggest delay/postpone discuss/debate
judge: praise/applaud criticize/condemn support/back accuse/blame
travel: arrive leave/depart return
quit: resign retire campaign
trade: buy/purchase/acquire sell lease
change: raise/increase cut/reduce/lower report/publish forecast/predict
start: launch/introduce/unveil cancel/scrap
employ: hire/recruit fire/dismiss train
grow: expand shrink collapse/fail
manage: install uninstall update/upgrade configure
keep: save/store delete/erase/remove copy/duplicate encrypt
transfer: download upload send/transmit share print
fault: crash restart/reboot
"""
_ATTRIBUTES = """
age: old/elderly young
size: big/large small/little huge/enormous
colour: red blue green white black brown
mood: happy/cheerful sad/unhappy tired/weary angry/furious
condition: new/modern broken/damaged dirty clean
cost: cheap/inexpensive expensive/costly
origin: foreign local national
rank: senior former
quality: fresh frozen sweet/sugary
reach: public secret/hidden
"""
_MANNERS = """
speed: quickly/rapidly/fast slowly/gradually
noise: quietly/silently loudly/noisily
care: carefully/cautiously carelessly
ease: easily
"""

NOUNS = Concepts.parse(_NOUNS)
"""People, animals and things."""
MASS = frozenset(re.findall(r"(\w+)\*", _NOUNS))
"""Nouns without a plural."""
PLACES = Concepts.parse(re.sub(r"\b(in|on|at|near)\.", "", _PLACES))
"""Places."""
PREPOSITIONS = {
    entry.partition(".")[2].partition("/")[0]: entry.partition(".")[0] for entry in _PLACES.split() if "." in entry
}
"""Place → its preposition."""
VERBS = Concepts.parse(_VERBS)
"""Actions."""
ATTRIBUTES = Concepts.parse(_ATTRIBUTES)
"""What a person or a thing can be like."""
MANNERS = Concepts.parse(_MANNERS)
"""How something is done."""
ANTONYMS = {
    one: other
    for pair in (
        "approve reject,praise criticize,buy sell,raise cut,launch cancel,hire fire,expand shrink,install uninstall,"
        "save delete,download upload,arrive leave,laugh cry,freeze warm,throw catch,sit stand,old young,big small,"
        "happy sad,cheap expensive,dirty clean,public secret,fresh frozen,quickly slowly,quietly loudly,"
        "carefully carelessly"
    ).split(",")
    for one, other in (pair.split(), pair.split()[::-1])
}
"""Opposites, both ways."""

_LIVING, _THING, _PUBLIC = ("age", "size", "mood"), ("colour", "condition", "size", "cost"), ("origin", "rank")
ATTRIBUTES_OF = {
    **dict.fromkeys(("person", "cook", "employee", "technician"), ("age", "mood")),
    "animal": (*_LIVING, "colour"),
    "food": ("quality", "size"),
    **dict.fromkeys(("instrument", "vehicle", "toy", "device", "product"), _THING),
    **dict.fromkeys(("text", "software", "data"), ("condition", "reach")),
    **dict.fromkeys(("official", "businessman"), _PUBLIC),
    **dict.fromkeys(("institution", "company"), ("origin", "size")),
    **dict.fromkeys(("policy", "figure"), ("reach", "size")),
}
"""Kind of noun → kinds of attribute it can have."""


def _actions(table: str) -> dict[str, tuple[str, ...]]:
    """Read ``verb verb>kind,kind`` into a table of verb → object kinds."""
    entries = (entry.partition(">") for entry in table.split())
    return {verb: tuple(kinds.split(",")) if kinds else () for verbs, _, kinds in entries for verb in verbs.split("+")}


TOPICS = {
    "people": Topic(
        "captions",
        ("person",),
        ("outdoors", "indoors"),
        _actions(
            "play+practise+tune>instrument eat+taste>food throw+catch+kick+carry+drop>toy"
            " drive+ride+repair+wash>vehicle read+write>text hug+chase+help+greet+follow+push>person"
            " run+walk+jump+climb+swim+sleep+sit+stand+laugh+cry+sing+dance"
        ),
        ("present", "past", "future"),
    ),
    "animals": Topic(
        "captions",
        ("animal",),
        ("outdoors", "indoors"),
        _actions(
            "chase+follow+watch+bite+lick+push>animal,person eat+swallow>food catch+carry+drop>toy"
            " run+walk+jump+climb+swim+sleep+sit+stand+lie"
        ),
        ("present", "past", "future"),
    ),
    "politics": Topic(
        "news",
        ("official", "institution"),
        ("country", "venue"),
        _actions(
            "approve+reject+sign+propose+delay+discuss>policy praise+criticize+support+accuse>official,institution"
            " greet+follow>official arrive+leave+return+resign+retire+campaign"
        ),
        ("past", "present", "future"),
    ),
    "business": Topic(
        "news",
        ("businessman", "company"),
        ("country", "business"),
        _actions(
            "buy+sell+lease>company,product raise+cut+report+forecast>figure launch+cancel>product"
            " hire+fire+train>employee expand+shrink+collapse criticize+praise+support>company,businessman"
        ),
        ("past", "future", "present"),
    ),
    "computers": Topic(
        "forums",
        ("technician",),
        ("system", "indoors"),
        _actions(
            "install+uninstall+update+configure>software save+delete+copy+encrypt>data"
            " download+upload+send+share+print>data buy+sell+repair+restart+crash>device help+follow>technician"
        ),
        ("present", "past", "future"),
    ),
    "cooking": Topic(
        "forums",
        ("cook",),
        ("cookware", "indoors"),
        _actions(
            "bake+boil+fry+grill+warm+freeze+cool>food chop+peel+grate>food mix+whisk+season+offer+decorate+taste>food"
            " help+watch>cook"
        ),
        ("present", "past", "future"),
    ),
}
"""The six corners of the world, two in each of the three domains."""
