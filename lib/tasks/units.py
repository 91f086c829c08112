"""Unit conversion: a whole number of one unit in another, over time, mass, volume, length, speed and data.

    Write 6 ft using cm instead.
        1 ft = 12 in, so 6 ft = <<6*12=72>>72 in
        1 in = 2.54 cm, so 72 in = <<72*2.54=182.88>>182.88 cm
        #### 183

Sizes come from pint, as exact fractions, with a table (PINT) for the names that pint reads otherwise. An answer is
rounded to 3 significant figures and counts as right within 5 %. The annotations are not rounded so: the arbiter checks
each to its last place, so a value is written to 2 decimals, more where 3 figures need them, and the rounding happens
between the last step and `####`, where the tolerance is. Facts are given to 6 significant figures.

A cell is a number with an ordered pair of units, whatever names they go by. Cells, not wordings, are split (`role`):
some numbers of every known pair and some whole pairs, in both directions, never occur in training.
"""

import random
import re
from decimal import Decimal
from fractions import Fraction
from functools import cache
from hashlib import blake2b

from lib.errors import InputError
from lib.problems import SPLITS, Problem, make_problem, read_json

TOLERANCE = 0.05
NUMBERS = range(1, 11)
LOW, HIGH = Fraction(1, 10), 10_000  # a pair is asked about if its factor lies between, both excluded
MAX_DIGITS = 15  # of a number that the arbiter reads

# Family -> units, each with all its names; the first is the one that chains use.
UNITS = {
    "time": (
        ("s", "sec", "second", "seconds"),
        ("min", "minute"),
        ("h", "hour", "hours"),
        ("day", "days"),
        ("week", "weeks"),
        ("month", "months"),
        ("year", "years"),
        ("decade", "decades"),
        ("century", "centuries"),
    ),
    "mass": (("g", "gram"), ("kg",), ("pound",), ("ounce",), ("tonne", "ton", "metric ton")),
    "volume": (
        ("L", "l", "liter", "litre"),
        ("mL", "ml", "milliliter", "millilitre"),
        ("cm^3", "cc", "cm**3"),
        ("m^3", "m**3"),
        ("mm^3", "mm**3"),
        ("pint",),
        ("quart",),
        ("gallon",),
        ("fluid ounce", "ounce"),
    ),
    "length": (("mm",), ("cm",), ("m", "meter"), ("km",), ("in",), ("ft",), ("yd",), ("mile", "mi", "miles")),
    "speed": (("m/s",), ("km/h", "kmh"), ("mph", "mi/h"), ("ft/s",), ("in/s",)),
    "data": (("bit",), ("byte", "B"), ("kB", "KB"), ("MB", "M"), ("GB", "G")),
}
YEAR = "31556925.9747 s"  # 365.2422 days; pint's is 365.25 days
PINT = {  # what pint would not know, or read as gauss, molar, short ton, a logarithm or another year
    **dict.fromkeys(("month", "months"), f"{YEAR} / 12"),
    **dict.fromkeys(("year", "years"), YEAR),
    **dict.fromkeys(("decade", "decades"), f"10 * {YEAR}"),
    **dict.fromkeys(("century", "centuries"), f"100 * {YEAR}"),
    **dict.fromkeys(("ton", "metric ton"), "metric_ton"),
    "fluid ounce": "fluid_ounce",
    "kmh": "km/h",
    "KB": "kB",
    "M": "MB",
    "G": "GB",
}
# "1 a = k b" is a fact that chains may use; k comes from pint. No pair that is asked about needs more than two.
FACTS = {
    "time": "min=s h=min h=s day=h week=day month=day year=month year=day year=week decade=year century=year",
    "mass": "kg=g pound=ounce pound=g ounce=g kg=pound pound=kg tonne=kg",
    "volume": "L=mL L=cm^3 mL=cm^3 m^3=L cm^3=mm^3 quart=pint gallon=quart gallon=pint pint=fluid ounce "
    "quart=fluid ounce gallon=fluid ounce gallon=L L=quart L=pint fluid ounce=mL pint=mL quart=mL",
    "length": "cm=mm m=cm m=mm km=m in=cm in=mm ft=in yd=ft yd=in ft=m yd=m mile=ft mile=yd mile=m mile=km",
    "speed": "m/s=km/h mph=km/h mph=m/s mph=ft/s ft/s=m/s ft/s=in/s m/s=in/s",
    "data": "byte=bit kB=byte MB=kB GB=MB",
}
TEMPLATES = {
    "number first": (
        "Turn {n} {a} into {b}.",
        "{n} {a} is how many {b}?",
        "Write {n} {a} using {b} instead.",
        "If I have {n} {a}, how much is that in {b}?",
        "Please change {n} {a} to {b}.",
        "Give the value of {n} {a} measured in {b}.",
        "A label says {n} {a}. What would it say in {b}?",
        "Suppose you get {n} {a}; state the same amount in {b}.",
    ),
    "target first": (
        "How many {b} make {n} {a}?",
        "What number of {b} matches {n} {a}?",
        "In {b}, what is {n} {a}?",
        "Work out the {b} that {n} {a} come to.",
        "Which count of {b} is the same as {n} {a}?",
        "My friend thinks only in {b}. What do I tell her for {n} {a}?",
        "The answer should be a number of {b}: take {n} {a}.",
    ),
    "from to": (
        "Go from {a} to {b} with a value of {n}.",
        "From {a} to {b}: what do {n} units become?",
        "Switching from {a} to {b}, what is the new figure for {n}?",
        "Starting from {a}, give {n} units in {b}.",
        "A table takes {a} to {b}. What stands next to {n}?",
    ),
}
WORDINGS = tuple((order, text) for order, texts in TEMPLATES.items() for text in texts)
LABELS = {family: {name: names[0] for names in units for name in names} for family, units in UNITS.items()}
NAMES = {names[0]: names for units in UNITS.values() for names in units}
FAMILY = {names[0]: family for family, units in UNITS.items() for names in units}
NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?"
SURFACES = sorted({name for labels in LABELS.values() for name in labels})
TOKEN = re.compile(
    rf"(?<![\w^*/.,'−-])(?:(?P<unit>{'|'.join(map(re.escape, SURFACES))})|(?P<number>{NUMBER}))(?![\w^*/']|[.,][0-9])"
)


# ----- sizes
@cache
def _registry():
    from pint import UnitRegistry

    return UnitRegistry(non_int_type=Fraction)


def quantity(name: str, family: str):
    """One of a unit by any of its names, as a quantity of pint's whose magnitude is exact."""
    name = "fluid ounce" if (family, name) == ("volume", "ounce") else name
    return _registry().parse_expression(PINT.get(name, name))


@cache
def size(label: str) -> Fraction:
    """How many base units of its family (s, kg, m^3, m, m/s, bit) a unit holds, exactly."""
    return Fraction(quantity(label, FAMILY[label]).to_base_units().magnitude)


@cache
def pairs(family: str) -> tuple[tuple[str, str], ...]:
    """The ordered pairs of a family that are asked about: 1/10 < how many targets a source holds < 10000."""
    labels = [names[0] for names in UNITS[family]]
    return tuple((a, b) for a in labels for b in labels if a != b and LOW < size(a) / size(b) < HIGH)


@cache
def path(source: str, target: str) -> tuple[tuple[str, str, bool], ...]:
    """The fewest facts that lead from a unit to another: (source, target, is the fact told in that direction?)."""
    told = re.findall(r"(fluid ounce|[^ =]+)=(fluid ounce|[^ =]+)", FACTS[FAMILY[source]])
    hops = [(a, b, True) for a, b in told] + [(b, a, False) for a, b in told]
    reached = {source: ()}
    for label, steps in (queue := list(reached.items())):
        for hop in hops:
            if hop[0] == label and hop[1] not in reached:
                reached[hop[1]] = (*steps, hop)
                queue.append((hop[1], reached[hop[1]]))
    return reached[target]


# ----- solved
def significant(value: float | Fraction, figures: int = 3) -> str:
    """A positive number to so many significant figures, without an exponent and without trailing zeros: 6000, 0.5."""
    return _plain(Decimal(f"{float(value):.{figures - 1}e}"))


def _rounded(value: Fraction, decimals: int) -> str:
    """A positive number to at most so many decimals, ties to even, as the workbench's calculator writes it."""
    nearest = round(value, decimals)
    return _plain(Decimal(nearest.numerator) / Decimal(nearest.denominator))


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


@cache
def chain(n: str, source: str, target: str) -> tuple[str, ...]:
    """The worked solution, one fact a step; every annotation states its value to the last place that it prints."""
    steps, goal = [], significant(Fraction(n) * size(source) / size(target))
    hops = path(source, target)
    for i, (a, b, told) in enumerate(hops, 1):
        big, small = (a, b) if told else (b, a)
        k = significant(size(big) / size(small), 6)
        value = Fraction(n) * Fraction(k) if told else Fraction(n) / Fraction(k)
        shown = _shown(value, goal if i == len(hops) else "")
        steps.append(f"1 {big} = {k} {small}, so {n} {a} = <<{n}{'*' if told else '/'}{k}={shown}>>{shown} {b}")
        n = shown
    return tuple(steps)


def _shown(value: Fraction, goal: str) -> str:
    """`value` to the fewest decimals, at least 2, that round to `goal` at 3 figures; else that keep 6 figures."""
    written = [_rounded(value, decimals) for decimals in range(2, MAX_DIGITS)]
    for figures, wanted in ((3, goal), (6, significant(value, 6))):
        for text in written:
            if Fraction(text) and significant(Fraction(text), figures) == wanted:
                return text
    return written[-1]


def _problem(question: str, n: str, source: str, target: str, **more) -> Problem:
    """The problem of converting `n` (a decimal as text), solved; `more` goes to its meta."""
    exact = Fraction(n) * size(source) / size(target)
    number = int(n) if n.isdigit() else float(n)
    meta = {"canonical": f"{n} {source} > {target}", "exact": float(exact), "relative_tolerance": TOLERANCE}
    meta |= {"n": number, "from_unit": source, "to_unit": target, "family": FAMILY[source]}
    return make_problem(question, chain(n, source, target), significant(exact), "units", **meta, **more)


def solve(question: str) -> Problem | None:
    """The problem that a question in any words states, solved; None where it doesn't hold one number and two units.

    The unit right behind the number is the source; where none stands there ("from A to B for 3 units"), the one that
    is named first. "in" is an inch only where a unit is lacking without it. An ounce is a fluid ounce beside a volume.
    """
    asked = _asked(question) if len(question) <= 1000 else None
    if asked is None:
        return None
    solved = _problem(question, *asked)
    written = re.findall(r"[0-9.]+", " ".join((*solved.steps, solved.answer)))
    return solved if all(len(text.replace(".", "")) <= MAX_DIGITS for text in written) else None


def _asked(question: str) -> tuple[str, str, str] | None:
    """(number, source, target) of a question, or None."""
    tokens = list(TOKEN.finditer(question))
    numbers = [token for token in tokens if token["number"]]
    n = numbers[0]["number"].replace(",", "") if len(numbers) == 1 else "0"
    if len(n) > MAX_DIGITS or not Fraction(n):
        return None
    behind = re.compile(" *").match(question, numbers[0].end()).end()  # where a unit of this number would begin
    places = {t["unit"]: t.start() for t in reversed(tokens) if t["unit"]}
    places |= {t["unit"]: -1 for t in tokens if t.start() == behind and t["unit"]}  # the source comes first
    names = sorted(places, key=places.get)
    if len(names) > 2:
        names = [name for name in names if name != "in"]
    for labels in LABELS.values() if len(names) == 2 else ():
        a, b = (labels.get(name) for name in names)
        if a and b and a != b:
            return _plain(Decimal(n)), a, b
    return None


# ----- which cells are held back
def _point(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


@cache
def held_out(family: str) -> dict[frozenset, str]:
    """Pairs, without direction, that never occur in training, each with its split ("valid" or "test").

    Taken by hash, an eighth for each, at least one, as long as training still leads from every unit to every other: it
    can be worked out, not looked up. A pair goes with its twins (mL is cm^3), and two names of one size are known.
    """
    every = sorted({frozenset(pair) for pair in pairs(family)}, key=lambda pair: _point(" ".join(sorted(pair))))
    wanted, found = ["test", "valid"] * max(1, len(every) // 8), {}
    for pair in every:
        twins = [other for other in every if set(map(size, other)) == set(map(size, pair))]
        rest = [other for other in every if other not in twins and other not in found]
        fits = len(set(map(size, pair))) == 2 and pair not in found and _reached(rest) == frozenset().union(*every)
        found |= dict.fromkeys(twins, wanted.pop(0)) if wanted and fits else {}
    return found


def _reached(edges: list[frozenset]) -> frozenset:
    """The units that the first of these pairs leads to, its own included."""
    reached = edges[0]
    for _ in edges:
        reached = reached.union(*(edge for edge in edges if edge & reached))
    return reached


@cache
def role(n: int, source: str, target: str) -> tuple[str, str]:
    """(split, novelty) of a cell, the same in every run.

    Of a known pair's ten numbers one goes to valid, one to test and one to "hidden", all as "new_number"; the rest is
    "train". Of a pair held back all is "new_pair": in valid all numbers, in test half of them; "hidden" has the others.
    """
    order = sorted(NUMBERS, key=lambda m: _point(f"{m} {source} > {target}"))
    held = held_out(FAMILY[source]).get(frozenset((source, target)))
    if held:
        return ("hidden" if held == "test" and n in order[:5] else held), "new_pair"
    return (*SPLITS[1:], "hidden", *["train"] * 7)[order.index(n)], "new_number" if n in order[:3] else "known"


# ----- generated
def _draw(n: int, seed: str, wanted: list[tuple[str, str]]) -> list[Problem]:
    """`n` different questions about cells of the wanted roles: each family as likely, then each name, number, wording.

    A family that has no question left drops out; InputError where none has.
    """
    rng, wanted, pools = random.Random(seed), set(wanted), {}
    for family in UNITS:
        cells = [(m, a, b) for a, b in pairs(family) for m in NUMBERS if role(m, a, b) in wanted]
        pool = [(m, x, y, t) for m, a, b in cells for x in NAMES[a] for y in NAMES[b] for t in range(len(WORDINGS))]
        pools[family] = rng.sample(pool, len(pool))
    if n > (total := sum(map(len, pools.values()))):
        raise InputError(f"units has {total} questions of this kind, not {n}; ask for fewer.")
    problems = []
    for _ in range(n):
        family = rng.choice([family for family, pool in pools.items() if pool])
        m, x, y, template = pools[family].pop()
        a, b = LABELS[family][x], LABELS[family][y]
        problems.append(_worded(m, x, y, template, a, b, role(m, a, b)[1]))
    return problems


def _worded(m: int, x: str, y: str, template: int, a: str, b: str, novelty: str) -> Problem:
    order, text = WORDINGS[template]
    return _problem(text.format(n=m, a=x, b=y), str(m), a, b, novelty=novelty, template=template, word_order=order)


def _both(n: int, seed: str, split: str) -> list[Problem]:
    """`n` questions of a split that is held back, the larger half about new pairs, mixed."""
    about_pairs = _draw(n - n // 2, f"{seed} pairs", [(split, "new_pair")])
    return random.Random(seed).sample(about_pairs + _draw(n // 2, f"{seed} numbers", [(split, "new_number")]), n)


def practice(n: int, seed: str, largest: int) -> list[Problem]:
    """`n` different questions about known pairs with numbers from 11 to `largest`, of which no test asks any."""
    if n > 100 * (largest - 10):  # far below what there is, so that a draw seldom meets what it has
        raise InputError(f"units practises {100 * (largest - 10)} questions up to {largest}, not {n}; raise practice.")
    rng, found = random.Random(f"{seed} practice"), {}
    known = {f: [pair for pair in pairs(f) if frozenset(pair) not in held_out(f)] for f in UNITS}
    while len(found) < n:
        source, target = rng.choice(known[rng.choice(list(UNITS))])
        m, x, y = rng.randint(11, largest), rng.choice(NAMES[source]), rng.choice(NAMES[target])
        problem = _worded(m, x, y, rng.randrange(len(WORDINGS)), source, target, "known")
        found.setdefault(problem.question, problem)
    return list(found.values())


def generate(n: int, seed: int = 0) -> list[Problem]:
    """`n` problems with different questions, about every cell but the hidden ones."""
    return _draw(
        n, f"units {seed}", [(split, kind) for split in SPLITS for kind in ("known", "new_number", "new_pair")]
    )


def splits(n: int, seed: int = 0, largest: int = 10) -> dict[str, list[Problem]]:
    """`n` problems as {"train", "valid", "test"}, 80/10/10, that share no cell.

    Half of valid and of test asks about new numbers of known pairs, half about new pairs (`meta["novelty"]`). With
    `largest` above 10, half of the training questions are `practice` with numbers up to it.
    """
    held, name = n // 10, f"units {seed} train"
    more = (n - 2 * held) // 2 if largest > 10 else 0
    train = _draw(n - 2 * held - more, name, [("train", "known")])
    if more:
        train = random.Random(name).sample(train + practice(more, name, largest), n - 2 * held)
    return {"train": train, **{name: _both(held, f"units {seed} {name}", name) for name in SPLITS[1:]}}


def hidden(n: int, seed: int) -> list[Problem]:
    """`n` problems for a grader, about cells that no seed of `generate` or `splits` ever asks about; half new pairs."""
    return _both(n, f"units {seed} hidden", "hidden")


# ----- the published form
def read(path: str) -> list[Problem]:
    """The problems of a JSON list of [question, answer] or [question, answer, chain] (`<answer>` tags are dropped).

    The file's answer stands, to 3 significant figures. Without a chain the steps are our own where `solve` finds the
    same answer, else none. Raises InputError, naming the item, at the first that is no such row.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a JSON list of [question, answer] pairs, found a {type(rows).__name__}.")
    return [_parse(row, f"{path}, item {i}") for i, row in enumerate(rows, 1)]


def _parse(row: object, where: str) -> Problem:
    if not isinstance(row, list) or len(row) not in (2, 3):
        found = f"a list of {len(row)}" if isinstance(row, list) else f"a {type(row).__name__}"
        raise InputError(f"{where}: expected [question, answer] or [question, answer, chain], found {found}.")
    question, answer, *chains = row
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: the question must be a text that is not empty, found {str(question)[:40]!r}.")
    if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not 1e-9 <= answer < 1e15:
        raise InputError(
            f"{where}: the answer must be a number from 1e-9 to 1e15, found {str(answer)[:40]!r}; mend it."
        )
    if chains and not isinstance(chains[0], str):
        raise InputError(f"{where}: the chain must be a text, found a {type(chains[0]).__name__}.")
    solved = solve(question)
    meta = {**(solved.meta if solved else {}), "exact": float(answer), "relative_tolerance": TOLERANCE}
    if chains:
        steps = [line.strip() for line in re.sub("</?answer>", "", chains[0]).splitlines() if line.strip()]
    else:
        agree = solved is not None and abs(solved.meta["exact"] - answer) <= 1e-6 * answer
        steps = solved.steps if agree else ()
    return make_problem(question, steps, significant(answer), "units", **meta)
