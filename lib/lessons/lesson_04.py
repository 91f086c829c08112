"""Exercises of 04_rft_generation: a calculator step, the vote, what to keep, distinct paths, a scoring rule."""

from lib.lessons.check import Exercise


def forced_writes_the_result(forced):
    """After `<<expression=` comes the exact result and what closes the annotation."""
    for text, expected in {"<<3+4=": "7>>", "He has 3 boxes. <<3*12=": "36>>", "<<5-8=": "-3>>"}.items():
        assert forced(text) == expected, f"after {text!r} should come {expected!r}, found {forced(text)!r}"


def forced_rounds_as_the_verifier_does(forced):
    """A result that is no whole number is written as the workbench writes numbers."""
    assert forced("<<1/3=") == "0.33>>", f"1/3 is written 0.33 here, found {forced('<<1/3=')!r}"
    assert forced("<<10/4=") == "2.5>>", f"10/4 is written 2.5, found {forced('<<10/4=')!r}"


def forced_leaves_the_model_alone(forced):
    """Where no annotation is open, or no = has come yet, the model is free."""
    for text in ("", "3+4=", "<<3+4", "<<3+4=7>>", "<<3+4=7>> so x ="):
        assert forced(text) is None, f"{text!r} asks for nothing, found {forced(text)!r}"


def forced_waits_for_the_equals_sign(forced):
    """It acts right after =, not when the model has begun to write a result."""
    assert forced("<<3+4=7") is None, "the result stands there already: a second one would be written behind it"


def forced_survives_nonsense(forced):
    """Where the expression has no value, the model is free, and nothing is ever executed."""
    for text in ("<<1/0=", "<<apples=", "<<__import__('os').getcwd()=", "<<2**10=", "<<="):
        assert forced(text) is None, f"{text!r} has no value, found {forced(text)!r}"


def forced_reads_the_last_annotation(forced):
    """What was closed before is over; the last annotation counts."""
    text = "<<3+4=7>>\n<<7*2="
    assert forced(text) == "14>>", f"after {text!r} should come '14>>', found {forced(text)!r}"


def vote_takes_the_most_frequent(vote):
    """The answer that most samples state wins."""
    found = vote(["3", "5", "5", "4", "5", "3"])
    assert found == "5", f"of 3 5 5 4 5 3 the vote is '5', found {found!r}"


def vote_ignores_missing_answers(vote):
    """A sample without an answer has no vote, however many there are."""
    found = vote([None, "7", None, None])
    assert found == "7", f"one stated answer against three missing ones: expected '7', found {found!r}"


def vote_breaks_ties_by_order(vote):
    """Of equally frequent answers the one that came first wins, so that the vote can be repeated."""
    for answers in (["9", "1", "1", "9"], ["1", "9", "9", "1"], ["b", "a"]):
        found = vote(list(answers))
        assert found == answers[0], f"of {answers} expected {answers[0]!r}, found {found!r}"


def vote_admits_there_is_none(vote):
    """Without any answer there is none."""
    for answers in ([], [None, None]):
        assert vote(answers) is None, f"{answers} gave {vote(answers)!r}"


# A question in other units, its gold answer as computed, and a sampled solution that deserves to be learned.
ASKED, GOLD = "Write 6 kg using g instead.", 5999.999999999999
GOOD = "1 kg = 1000 g, so 6 kg = <<6*1000=6000>>6000 g\n<answer>6000</answer>"


def _refused(record, text: str, why: str, gold: float = GOLD) -> None:
    found = record(ASKED, gold, text)
    assert found is None, f"with gold {gold} this was kept: {text!r}; {why}"


def _kept(record, text: str, gold: float = GOLD) -> list:
    found = record(ASKED, gold, text)
    assert found is not None, f"with gold {gold} this was refused, and all of it holds: {text!r}"
    assert len(found) == 3, f"question, gold and chain were expected, found {found!r}"
    return list(found)


def record_keeps_what_holds(record):
    """A solution that holds becomes the question and its chain as it was written, without blanks around it."""
    two = "1 ft = 12 in, so 9 ft = <<9*12=108>>108 in\n1 in = 2.54 cm, so <<108*2.54=274.32>>274.32 cm\n"
    for text, gold in (
        (GOOD, GOLD),
        (f" {GOOD}\n \n", GOLD),
        (f"{two}<answer> 274 </answer>", 274.32),
        ("<<1/8=0.125>>0.125 <answer>0.125</answer>", 0.125),
    ):
        question, _, chain = _kept(record, text, gold)
        assert question == ASKED, f"the question became {question!r}"
        assert chain == text.strip(), f"the chain of {text!r} became {chain!r}"


def record_keeps_gold(record):
    """The answer of the record is the source's own number, not the model's."""
    for text, gold in ((GOOD, GOLD), ("<<7*5263=36841>>36841 ft\n<answer>36841</answer>", 36960.0)):
        found = _kept(record, text, gold)[1]
        assert found == gold, f"gold is {gold}, the record says {found}: the model's answer must not replace it"


def record_wants_the_tag_closed(record):
    """There is exactly one <answer>, and it is closed."""
    _refused(record, GOOD.removesuffix("</answer>"), "the tag is not closed, and a model taught so does not close it")
    _refused(record, GOOD.replace("<answer>", "").replace("</answer>", ""), "nothing says which number is the answer")
    for text in (f"<answer>6000</answer>\n{GOOD}", GOOD.replace("<answer>", "<answer><answer>")):
        _refused(record, text, "<answer> stands there twice")


def record_ends_with_the_answer(record):
    """Nothing but blanks follows the closing tag."""
    for more in ("\nNow 7 kg: <<7*1000=7000>>7000 g", ".", " g"):
        _refused(record, GOOD + more, "text follows the answer, and a model taught so does not stop")


def record_reads_a_bare_number(record):
    """Between the tags stands a number and nothing else; anything else is refused, without an error."""
    for answer in ("6,000", "6000 g", "six", "", " ", "$6000", "60 00", "nan", "12000/2", "6*1000"):
        text = GOOD.replace("<answer>6000<", f"<answer>{answer}<")
        try:
            found = record(ASKED, GOLD, text)
        except Exception as error:
            raise AssertionError(f"{answer!r} between the tags ended in {type(error).__name__}; give None") from None
        assert found is None, f"{answer!r} between the tags was kept"


def record_survives_junk(record):
    """A sample of nothing, or of broken tags, is refused, without an error."""
    for text in (
        "",
        "\n",
        "no answer",
        "<answer>",
        "</answer>",
        "</answer>6000<answer>",
        "<<",
        "<<6*1000=>>",
        "assistant",
    ):
        try:
            found = record(ASKED, GOLD, text)
        except Exception as error:
            raise AssertionError(f"{text!r} ended in {type(error).__name__}; give None") from None
        assert found is None, f"{text!r} was kept as {found!r}"


def record_is_strict(record):
    """The answer is within 1 % of gold: rounding passes, a wrong factor does not."""
    for number, gold in (("156", 156.53), ("20900", 20870.982787499997), ("0.0123", 0.01234)):
        _kept(record, f"<<{number}*1={number}>>{number}\n<answer>{number}</answer>", gold)
    for number, gold in (("5120", 5000.0), ("96", 100.0), ("103", 100.0), ("12000", 6000.0), ("-6000", 6000.0)):
        text = f"<<{number}*1={number}>>{number}\n<answer>{number}</answer>"
        _refused(record, text, "5 % are for grading; what teaches may be 1 % off, no more", gold)


def record_checks_the_arithmetic(record):
    """There is an annotation, and every one computes."""
    reason = "its arithmetic is wrong, and would be learned"
    for annotation in ("6*1000=600", "6*100=6000", "kg=kg", "6/0=6000", "6000", "6*1000="):
        _refused(record, GOOD.replace("6*1000=6000", annotation), reason)
    _refused(record, f"<<2+2=5>>5\n{GOOD}", reason)
    _refused(record, f"{GOOD.partition('<answer>')[0]}<<2+2=5>>5\n<answer>6000</answer>", reason)
    _refused(record, "6 kg are 6000 g\n<answer>6000</answer>", "without an annotation nothing was checked")


def record_begins_with_the_solution(record):
    """No line with the name of a role stands in front."""
    for role in ("assistant", "user", "system"):
        _refused(
            record, f"{role}\n{GOOD}", f"{role!r} belongs to the prompt: was the prompt cut off at the wrong place?"
        )


A = "Six trays hold <<6*4=24>>24 jars.\n<<24-5=19>>19 are left.\n#### 19"
A_IN_OTHER_WORDS = "There are <<6 * 4 = 24>>24 jars at first.\nThen <<24-5=19>>19.\n#### 19"
B = "Per tray <<4*6=24>>24 jars.\n<<24-5=19>>19 are left.\n#### 19"
C = "<<24-5=19>>19\n<<6*4=24>>24\n#### 19"


def distinct_drops_the_same_equations(keep):
    """Of two texts with the same equations, the first stays."""
    found = list(keep([A, A_IN_OTHER_WORDS]))
    assert found != [A, A_IN_OTHER_WORDS], "both were kept: blanks inside an annotation make no other equation"
    assert found == [A], f"expected the first text alone, found {found}"


def distinct_keeps_other_orders(keep):
    """4*6 is not 6*4, and the same equations in another order are another path."""
    found = list(keep([A, B, C]))
    assert found == [A, B, C], f"three paths came in, {len(found)} came out: order matters in and between equations"


def distinct_looks_at_whole_equations(keep):
    """Results count too, and so does where one equation ends and the next begins."""
    for texts in (["<<3+4=7>>", "<<3+4=8>>"], ["<<1+1=2>><<1+1=2>>", "<<1+1=21+1=2>>"]):
        found = list(keep(list(texts)))
        assert found == texts, f"{texts} are two paths, found {found}"


def distinct_keeps_the_order(keep):
    """What stays keeps its order, and the list that came in is not changed."""
    texts = [C, A, A_IN_OTHER_WORDS, B, C]
    found = list(keep(texts))
    assert texts == [C, A, A_IN_OTHER_WORDS, B, C], "the list that came in was changed"
    assert found == [C, A, B], "expected the first text of each path, in the order in which they came"


def scored(traceable, given: list, chain: list) -> float:
    """What the reader's function gives for copies."""
    found = traceable(list(given), [(list(operands), result) for operands, result in chain])
    assert isinstance(found, (int, float)), f"a number from 0 to 1 was expected, found {found!r}"
    return float(found)


def score_is_a_share(traceable):
    """Each operand counts once: the share of all of them that come from somewhere."""
    for given, chain, wanted in (
        ([5, 3], [([5, 3], 8)], 1.0),
        ([5, 3], [([5, 7], 12)], 0.5),
        ([5, 3, 2], [([5, 3, 2], 10), ([6, 4], 24)], 0.6),
    ):
        found = scored(traceable, given, chain)
        assert abs(found - wanted) < 1e-9, f"given {given}, chain {chain}: expected {wanted}, found {found:.4g}"


def score_knows_earlier_results(traceable):
    """The result of an earlier step is as good as a number of the question."""
    found = scored(traceable, [5, 3, 2], [([5, 3], 8), ([8, 2], 16), ([16, 8], 24)])
    assert abs(found - 1) < 1e-9, f"5 + 3 = 8, 8 * 2 = 16, 16 + 8 = 24: every operand is known, found {found:.4g}"


def score_knows_no_later_result(traceable):
    """A result may be used after its step, neither in it nor before."""
    found = scored(traceable, [5, 3], [([8, 3], 11), ([5, 3], 8)])
    assert abs(found - 0.75) < 1e-9, f"8 is used before it is computed: expected 0.75, found {found:.4g}"
    found = scored(traceable, [5], [([5, 10], 10)])
    assert abs(found - 0.5) < 1e-9, f"a step used its own result: expected 0.5, found {found:.4g}"


def score_lets_numbers_be_used_again(traceable):
    """A number may be used as often as one likes."""
    found = scored(traceable, [4], [([4, 4], 16), ([16, 4], 64)])
    assert abs(found - 1) < 1e-9, f"4 * 4 = 16, 16 * 4 = 64 with one 4 given: expected 1, found {found:.4g}"


def score_of_nothing_is_nothing(traceable):
    """A chain without operands proves nothing: 0, not an error and not 1."""
    found = scored(traceable, [5, 3], [])
    assert found == 0, f"an empty chain should score 0, found {found:.4g}"


EXERCISES = {
    "4.1": Exercise(
        [
            forced_writes_the_result,
            forced_rounds_as_the_verifier_does,
            forced_leaves_the_model_alone,
            forced_waits_for_the_equals_sign,
            forced_survives_nonsense,
            forced_reads_the_last_annotation,
        ],
        [
            "Find the last << of the text; what stands behind it is the annotation that may be open.",
            "Partition the annotation at its first =: without one, or with anything behind it, return None.",
            'before, marker, annotation = text.rpartition("<<"); expression, equals, rest = annotation.partition("=")',
        ],
    ),
    "4.2": Exercise(
        [
            vote_takes_the_most_frequent,
            vote_ignores_missing_answers,
            vote_breaks_ties_by_order,
            vote_admits_there_is_none,
        ],
        [
            "Leave out None first; then it is a question of counting.",
            "max(..., key=...) returns the first of several largest.",
            "max(stated, key=stated.count) if stated else None",
        ],
    ),
    "4.3": Exercise(
        [
            record_keeps_what_holds,
            record_keeps_gold,
            record_wants_the_tag_closed,
            record_ends_with_the_answer,
            record_reads_a_bare_number,
            record_survives_junk,
            record_is_strict,
            record_checks_the_arithmetic,
            record_begins_with_the_solution,
        ],
        [
            "Strip the text, then look for one reason after another to return None; what is left is a record.",
            "Count both tags and ask endswith; float() raises ValueError on what is no number; gold is only compared.",
            "holds = [answers.check_annotation(*pair).ok for pair in answers.annotations(body)], and it must not be "
            "empty; near means abs(float(number) - gold) <= 0.01 * abs(gold).",
        ],
    ),
    "4.4": Exercise(
        [
            distinct_drops_the_same_equations,
            distinct_keeps_other_orders,
            distinct_looks_at_whole_equations,
            distinct_keeps_the_order,
        ],
        [
            "A dictionary from path to text keeps its order, and dict.setdefault keeps the first.",
            "A path is a tuple of texts, one an annotation; remove the blanks.",
            'tuple(f"{a}={b}".replace(" ", "") for a, b in answers.annotations(text))',
        ],
    ),
    "4.5": Exercise(
        [
            score_is_a_share,
            score_knows_earlier_results,
            score_knows_no_later_result,
            score_lets_numbers_be_used_again,
            score_of_nothing_is_nothing,
        ],
        [
            "Go through the chain from its first step; at each step you know the question's numbers and some results.",
            "Keep a set of what is known. Look each operand up in it first, then add the step's own result.",
            "for operands, result in chain: traced += [x in known for x in operands]; known.add(result)",
        ],
    ),
}
