"""Exercises of 07_coconut_stages: the stage table, thinking, the label mask."""

from lib.lessons.check import Exercise


# ----- 7.1
def stages_of(stage_table, top: int, c: int) -> list[tuple]:
    """What the reader's function returns, as a list of pairs."""
    found = stage_table(top, c)
    table = isinstance(found, (list, tuple)) and all(isinstance(x, (list, tuple)) and len(x) == 2 for x in found)
    assert table, f"a list of pairs (steps left out, thoughts), one a stage, was expected, found {found!r}"
    return [tuple(stage) for stage in found]


def table_starts_with_a_whole_chain(stage_table):
    """Stage 0 leaves nothing out and thinks nothing: it is the chain of thought."""
    found = stages_of(stage_table, 3, 1)
    assert found[:1] == [(0, 0)], f"the first stage is (0, 0), no step left out and no thought, found {found[:1]}"


def table_puts_c_thoughts_for_a_step(stage_table):
    """Stage s leaves out s steps and puts s times c_thought thoughts in their place."""
    for top, c in ((3, 1), (3, 2), (6, 1), (2, 3)):
        found = stages_of(stage_table, top, c)[: top + 1]
        wanted = [(s, s * c) for s in range(top + 1)]
        assert found == wanted, f"max_latent_stage {top}, c_thought {c}: stages 0 to {top} are {wanted}, found {found}"


def table_ends_without_language(stage_table):
    """One more stage leaves out all steps (None); its thoughts are as many as the stage before had."""
    for top, c in ((3, 1), (3, 2), (6, 1)):
        found = stages_of(stage_table, top, c)
        assert len(found) == top + 2, (
            f"max_latent_stage {top} makes the stages 0 to {top} and one more, {top + 2}; found {len(found)}"
        )
        assert found[-1] == (None, top * c), f"the last stage is (None, {top * c}), found {found[-1]}"


# ----- 7.2
class Reader:
    """A toy model: its state at a position depends on every embedding read so far, and on their order."""

    def __init__(self):
        self.positions, self.calls = [], []

    def __call__(self, embeddings):
        assert isinstance(embeddings, (list, tuple)), f"read takes a list of embeddings, not {embeddings!r} alone"
        self.calls.append(list(embeddings))
        self.positions += self.calls[-1]
        return sum((place + 1) * value for place, value in enumerate(self.positions)) % 97


QUESTION = [5, 3, 8]


def thought(think, n: int, reader: Reader | None = None) -> tuple[list, int]:
    """(thoughts, state) as the reader's function returns them."""
    found = think(reader or Reader(), list(QUESTION), n)
    pair = isinstance(found, (list, tuple)) and len(found) == 2 and isinstance(found[0], (list, tuple))
    assert pair, f"(list of thoughts, state) was expected, found {found!r}"
    return list(found[0]), found[1]


def thinking_nothing_is_reading(think):
    """Without thoughts, the state at the question's end is where the answer starts."""
    thoughts, state = thought(think, 0)
    assert thoughts == [], f"0 thoughts were asked for, {len(thoughts)} came"
    wanted = Reader()(QUESTION)
    assert state == wanted, f"the state is what reading the question returns, {wanted}; found {state}"


def thinking_feeds_the_state_back(think):
    """The first thought is the state at the question's end; each next one is what the thought before it led to."""
    expected = Reader()
    thoughts, _ = thought(think, 3)
    wanted = [expected(QUESTION)]
    for _ in range(3):
        wanted.append(expected([wanted[-1]]))
    late = "; a thought is what is fed back, so note the state before you read it" if thoughts == wanted[1:] else ""
    assert thoughts == wanted[:3], f"the thoughts should be {wanted[:3]}, found {thoughts}{late}"


def thinking_ends_after_the_last_thought(think):
    """The answer starts from the state at the last thought: that one, too, has to be read."""
    for n in (1, 2, 4):
        _, state = thought(think, n)
        expected = Reader()
        wanted = expected(QUESTION)
        before = wanted
        for _ in range(n):
            before, wanted = wanted, expected([wanted])
        assert state != before or wanted == before, f"{n} thoughts: the last one was never read"
        assert state == wanted, f"{n} thoughts end in the state {wanted}, found {state}"


def thinking_reads_one_position_a_thought(think):
    """The question is read once, and each thought alone: what was read before is kept."""
    reader = Reader()
    thought(think, 3, reader)
    sizes = [len(call) for call in reader.calls]
    assert sizes[:1] == [3], f"the question's 3 embeddings are read first, in one call; found calls of {sizes}"
    reason = "read keeps what it was given: hand it the new thought alone" if max(sizes[1:], default=0) > 1 else ""
    reason = reason or "read each of the 3 thoughts once, the last one, too"
    assert sizes == [3, 1, 1, 1], f"calls of 3, 1, 1 and 1 embeddings were expected, found {sizes}: {reason}"


# ----- 7.3
def labels_one_a_position(labels):
    """There is one label for each position: question, thoughts, rest."""
    for question, thoughts, rest in (([7, 8], 3, [4, 1]), ([7], 0, [4, 4, 1]), ([7, 8, 9], 1, [1])):
        found = len(list(labels(question, thoughts, rest)))
        wanted = len(question) + thoughts + len(rest)
        assert found == wanted, (
            f"{len(question)} + {thoughts} + {len(rest)} positions need {wanted} labels, not {found}"
        )


def labels_none_on_the_question(labels):
    """No loss on the question: it is given."""
    found = list(labels([7, 8, 9], 2, [4, 1]))[:3]
    assert found == [-100] * 3, f"the question's labels are -100, found {found}"


def labels_none_on_thoughts(labels):
    """No loss on the thoughts: nobody knows what they should be."""
    for thoughts in (1, 4):
        found = list(labels([7, 8], thoughts, [4, 1]))[2 : 2 + thoughts]
        assert found == [-100] * thoughts, f"labels of {thoughts} thoughts are -100, found {found}"


def labels_all_of_the_rest(labels):
    """Loss on everything written after the thoughts, the first token of it and the end included, unshifted."""
    found = list(labels([7, 8], 2, [4, 5, 1]))[4:]
    assert found == [4, 5, 1], f"the rest labels itself, [4, 5, 1]; found {found}"


EXERCISES = {
    "7.1": Exercise(
        [table_starts_with_a_whole_chain, table_puts_c_thoughts_for_a_step, table_ends_without_language],
        [
            "List the stages 0 to max_latent_stage first; the last one is added to them.",
            "Stage s is (s, s * c_thought); range(max_latent_stage + 1) counts from 0 to max_latent_stage.",
            "The last one is (None, max_latent_stage * c_thought).",
        ],
    ),
    "7.2": Exercise(
        [
            thinking_nothing_is_reading,
            thinking_reads_one_position_a_thought,
            thinking_feeds_the_state_back,
            thinking_ends_after_the_last_thought,
        ],
        [
            "Keep one variable, the state at the last position read, and let it go round.",
            "In each round: the state is a thought; note it, read it, and take the state that comes back.",
            "state = read(question); then n times: thoughts.append(state); state = read([state])",
        ],
    ),
    "7.3": Exercise(
        [labels_one_a_position, labels_none_on_the_question, labels_none_on_thoughts, labels_all_of_the_rest],
        [
            "Question and thoughts are treated alike: neither has a label of its own.",
            "A list of -100 of the right length, and then the rest as it is.",
            "[-100] * (len(question) + thoughts) + list(rest)",
        ],
    ),
}
