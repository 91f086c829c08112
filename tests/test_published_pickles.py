"""lib.distillation.published: honest pickles are read as they are, others are refused and never run."""

import copyreg
import io
import json
import math
import os
import pickle
import pickletools
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.distillation import published
from lib.errors import InputError
from lib.prompts import FORMATS

ROOT = Path(__file__).parents[1]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
COT = "in_context_chain_of_thought"


def steps(kind=OrderedDict):
    """As in the authors' notebook: point masses are dicts, the others OrderedDicts."""
    soft = kind([("▁Nat", 0.6018), ("▁in", 0.0261), ("▁we", 0.0125), ("▁48", 0.0335), ("▁she", 0.2588)])
    return [{"▁If": 1.0}, soft, kind([("alia", 0.9996), ("elia", 0.0002), ("alias", 0.0)]), {"<0x0A>": 1}]


def record(kind=OrderedDict, type=COT, **changes):
    made = {
        "question": "Q: Natalia sold clips …\nLet's think step by step",
        "answer": "She sold 48/2 = 24 clips.\nThe answer is 72",
        "answer_gold": "Answer: 48/2 = <<48/2=24>>24\n#### 72\n",
        "answer_label": 0 if type.endswith("negative") else 1,
        "type": type,
    }
    if type.endswith(("thought", "negative")):
        made["per_step_probs"] = steps(kind)
    return made | changes


def saved(tmp_path, data):
    path = tmp_path / "data.pkl"
    path.write_bytes(data)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def converted(records):
    return [{"form": published.FORMS[r["type"]]} | {k: r[k] for k in r if k != "type"} for r in records]


def refused(path):
    """The sentence that refuses a file; it names the file and is one line."""
    with pytest.raises(InputError) as caught:
        published.read(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


# --- honest files ---


def test_every_published_format_has_one_of_ours():
    assert set(published.FORMS.values()) == set(FORMATS)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_pickled_is_read_and_converted(tmp_path, protocol, kind):
    records = [record(kind, type, question=f"Q: {i}") for i, type in enumerate(published.FORMS)]
    records += [record(kind, answer="x" * n + "\n\\u0041é😀" * 3) for n in (0, 250, 255, 256, 70_000)]
    path = saved(tmp_path, pickle.dumps(records, protocol))
    found = published.read(path)
    assert found == records
    assert all(type(step) is dict for r in found for step in r.get("per_step_probs", []))
    assert [list(step) for step in found[-1]["per_step_probs"]] == [list(step) for step in steps()]  # in their order
    counts = published.convert(path, tmp_path / "new" / "out.jsonl")
    assert lines(tmp_path / "new" / "out.jsonl") == converted(records)
    assert counts == {
        "records": 10,
        "zero_shot_answer": 1,
        "zero_shot_cot": 1,
        "in_context_answer": 1,
        "in_context_cot": 7,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_writers_of_the_same_list_are_read(tmp_path, protocol):
    """Python's own pickler, and a pickle without the numbers of objects that nothing refers to."""
    records = [record(), record()]
    assert published.read(saved(tmp_path, pickle._dumps(records, protocol))) == records
    assert published.read(saved(tmp_path, pickletools.optimize(pickle.dumps(records, protocol)))) == records


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_of_many_objects_is_read(tmp_path, protocol):
    """More than 65,536 of them, some in several records, as the authors' records of one question share its texts."""
    shared = "Answer: 7\n#### 7\n"
    many = [record(question=f"Q: {i}", answer_gold=shared) for i in range(8000)]
    for i, made in enumerate(many):
        made["per_step_probs"] += [{f"▁{i}": 0.5, f"{i}": 0.25}, many[i - 1]["per_step_probs"][1]]
    assert published.read(saved(tmp_path, pickle.dumps(many, protocol))) == many


def test_an_empty_list_is_no_record(tmp_path):
    path = saved(tmp_path, pickle.dumps([]))
    assert published.read(path) == []
    assert published.convert(path, tmp_path / "out.jsonl") == {"records": 0}
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_a_negative_record_may_lack_probabilities(tmp_path):
    made = record(type=f"{COT}_negative")
    del made["per_step_probs"]
    assert published.read(saved(tmp_path, pickle.dumps([made]))) == [made]


tokens = st.text(max_size=6)


@st.composite
def distributions(draw):
    """{token: probability} with a sum up to 1, in one of the two kinds of map."""
    weights = draw(st.dictionaries(tokens, st.floats(0, 1), min_size=1, max_size=6))
    total = max(1, math.fsum(weights.values()))
    return draw(st.sampled_from([dict, OrderedDict]))({token: p / total for token, p in weights.items()})


@st.composite
def any_records(draw):
    kind = draw(st.sampled_from(sorted(published.FORMS)))
    texts = {key: draw(st.text(max_size=300)) for key in ("question", "answer", "answer_gold")}
    made = {**texts, "answer_label": draw(st.sampled_from([0, 1])), "type": kind}
    if "chain_of_thought" in kind:
        made["per_step_probs"] = draw(st.lists(distributions(), min_size=1, max_size=5))
    return made


@given(st.lists(any_records(), max_size=4), st.sampled_from(PROTOCOLS))
def test_round_trip(records, protocol):
    with tempfile.TemporaryDirectory() as folder:
        path, out = saved(Path(folder), pickle.dumps(records, protocol)), Path(folder, "out.jsonl")
        assert published.read(path) == records
        counts = published.convert(path, out)
        found = [json.loads(line) for line in out.read_bytes().decode().split("\n")[:-1]]
        assert found == converted(records)
        assert counts == {"records": len(records)} | Counter(r["form"] for r in found)


# --- records that are wrong ---

WRONG = {
    "no dict": ("a record", "expected a dict, found a str"),
    "a list": ([], "expected a dict, found a list"),
    "no type": ({}, '"type" must be one of'),
    "another type": (record(type="few_shot"), '"type" must be one of'),
    "a list for a type": (record() | {"type": []}, '"type" must be one of'),
    "a key too many": (record(id=3), "has the keys"),
    "a key that is no text": (record() | {7: ""}, "has the keys"),
    "a key too few": ({k: v for k, v in record().items() if k != "answer_gold"}, "has the keys"),
    "probabilities of an answer alone": (record(type="zero_shot_answer_only", per_step_probs=steps()), "has the keys"),
    "no probabilities": ({k: v for k, v in record().items() if k != "per_step_probs"}, "has the keys"),
    "a number for a text": (record(answer=72), '"answer" must be a str, found a int'),
    "None for a text": (record(question=None), '"question" must be a str, found a NoneType'),
    "a bool for a label": (record(answer_label=True), '"answer_label" must be 0 or 1'),
    "another label": (record(answer_label=2), '"answer_label" must be 0 or 1'),
    "a large label": (record(answer_label=-(2**31)), '"answer_label" must be 0 or 1'),
    "a map for the steps": (record(per_step_probs={"a": 1.0}), '"per_step_probs" must be a list'),
    "no step": (record(per_step_probs=[]), '"per_step_probs" must be a list'),
    "a step that is no map": (record(per_step_probs=[{"a": 1.0}, ["a"]]), '"per_step_probs" must be a list'),
}
WRONG_STEPS = {
    "no token": {},
    "a number for a token": {3: 1.0},
    "None for a token": {None: 1.0},
    "a text for a probability": {"a": "1.0"},
    "a list for a probability": {"a": [1.0]},
    "a bool for a probability": {"a": True},
    "more than 1": {"a": 1.0001},
    "less than 0": {"a": 0.5, "b": -0.0001},
    "nan": {"a": 0.5, "b": math.nan},
    "nan first": {"a": math.nan, "b": 0.5},
    "infinity": {"a": math.inf},
    "a sum above 1.001": {"a": 0.6, "b": 0.402},
}


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_record_is_named(tmp_path, wrong, protocol):
    made, says = WRONG[wrong]
    sentence = refused(saved(tmp_path, pickle.dumps([record(), record(), made, record()], protocol)))
    assert "data.pkl, record 3: " in sentence and says in sentence


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("wrong", WRONG_STEPS)
def test_a_wrong_step_is_named(tmp_path, wrong, protocol):
    made = record(per_step_probs=[*steps(), WRONG_STEPS[wrong], *steps()])
    sentence = refused(saved(tmp_path, pickle.dumps([record(), made], protocol)))
    assert "data.pkl, record 2: step 5 of " in sentence


def test_a_sum_may_exceed_1_by_what_rounding_adds(tmp_path):
    made = record(per_step_probs=[{"a": 0.6, "b": 0.4009}])
    assert published.read(saved(tmp_path, pickle.dumps([made]))) == [made]


@pytest.mark.parametrize("value", [{}, "text", 3, None, record()], ids=["dict", "text", "int", "None", "record"])
def test_a_file_that_holds_no_list_is_refused(tmp_path, value):
    assert "something other" in (said := refused(saved(tmp_path, pickle.dumps(value)))) or "a list of records" in said


@pytest.mark.parametrize(
    "value",
    [numpy.float64(0.5), numpy.float32(0.5), numpy.array([0.5]), (0.5, 0.5), {0.5}, frozenset(), b"0.5", 1j, 2**40],
    ids=["float64", "float32", "array", "tuple", "set", "frozenset", "bytes", "complex", "large"],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_values_are_refused_in_a_clear_sentence(tmp_path, value, protocol):
    sentence = refused(saved(tmp_path, pickle.dumps([record(per_step_probs=[{"a": value}])], protocol)))
    assert "NumPy numbers, tuples or objects, which are never made" in sentence or "step 1 of" in sentence


def test_other_maps_are_refused(tmp_path):
    for made in (defaultdict(float, a=1.0), Counter(a=1)):
        assert "something other" in refused(saved(tmp_path, pickle.dumps([record(per_step_probs=[made])])))


# --- hostile files: those that can call os.system leave a mark ---


def short(text):
    return b"\x8c" + bytes([len(text)]) + text


RUN = b"echo > mark"
SYSTEM = b"cos\nsystem\n"
HOSTILE = {
    "GLOBAL, REDUCE": SYSTEM + b"(V" + RUN + b"\ntR.",
    "GLOBAL, REDUCE with an old text": SYSTEM + b"(S'" + RUN + b"'\ntR.",
    "GLOBAL, TUPLE1, REDUCE": b"\x80\x02" + SYSTEM + b"X\x0b\0\0\0" + RUN + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04" + short(b"os") + short(b"system") + b"\x93" + short(RUN) + b"\x85R.",
    "STACK_GLOBAL under the allowed name": b"\x80\x04"
    + short(b"os")
    + short(b"system")
    + b"X\x19\0\0\0\x8c\x0bcollections\x8c\x0bOrderedDict0\x93"
    + short(RUN)
    + b"\x85R.",
    "INST": b"(V" + RUN + b"\nios\nsystem\n.",
    "OBJ": b"(" + SYSTEM + b"V" + RUN + b"\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\nV" + RUN + b"\n\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\nV" + RUN + b"\n\x85}\x92.",
    "EXT1": b"\x80\x02\x82\xf0V" + RUN + b"\n\x85R.",
    "EXT2": b"\x80\x02\x83\xf0\0V" + RUN + b"\n\x85R.",
    "EXT4": b"\x80\x02\x84\xf0\0\0\0V" + RUN + b"\n\x85R.",
    "PERSID": b"P" + RUN + b"\n.",
    "BINPERSID": b"V" + RUN + b"\nQ.",
    "eval": b"cbuiltins\neval\n(V__import__('os').system('echo > mark')\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.",
    "a name with a dot": b"\x80\x04" + short(b"collections") + short(b"OrderedDict.fromkeys") + b"\x93]\x85R.",
    "a module of collections": b"ccollections\nnamedtuple\n(Va\nVb\ntR.",
    "a module reached from collections": b"\x80\x04" + short(b"collections") + short(b"_sys.modules") + b"\x93.",
    "BUILD of the class": b"\x80\x02ccollections\nOrderedDict\n}Vitems\nVx\nsb.",
    "BUILD of an object": b"\x80\x02ccollections\nOrderedDict\n)R}Vitems\nVx\nsb.",
    "BUILD with slots": b"\x80\x02ccollections\nOrderedDict\n)RN}V__class__\nVx\ns\x86b.",
    "REDUCE of no function": b"\x80\x02V" + RUN + b"\n)R.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "another protocol": b"\x80\x63].",
    "STOP at once": b".",
    "a mark and no more": b"(.",
    "a text of another encoding": b"\x80\x02]X\x02\0\0\0\xff\xfea.",
    "an object that is not there": b"]h\x07a.",
}


@pytest.fixture
def extension():
    """os.system under a number, as a program may have registered it."""
    copyreg.add_extension("os", "system", 0xF0)
    yield
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("before", [b"", b"\x80\x04](}"], ids=["bare", "within"])
def test_a_hostile_file_is_refused_and_not_run(tmp_path, monkeypatch, extension, name, before):
    monkeypatch.chdir(tmp_path)
    refused(saved(tmp_path, before + HOSTILE[name]))
    assert os.listdir() == ["data.pkl"]


def test_these_files_would_run(tmp_path, monkeypatch, extension):
    """Those that call os.system do so where pickle reads them: the tests above can fail."""
    monkeypatch.chdir(tmp_path)
    for name in ("GLOBAL, REDUCE", "GLOBAL, TUPLE1, REDUCE", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT4", "eval"):
        pickle.loads(HOSTILE[name])
        os.remove("mark")


@pytest.mark.parametrize("name", HOSTILE)
def test_the_unpickler_alone_runs_nothing_either(tmp_path, monkeypatch, extension, name):
    """The second lock, without the look at the opcodes: it may read such a file, and makes plain values alone."""
    monkeypatch.chdir(tmp_path)
    try:
        made = published.Plain(io.BytesIO(HOSTILE[name])).load()
    except Exception:
        made = None
    assert type(made) in (type(None), list, dict, str)
    assert os.listdir() == []


def test_an_extension_that_was_used_before_is_refused_too(tmp_path, monkeypatch):
    """The unpickler takes such a one from a cache and asks nobody; the look at the opcodes keeps it out."""
    monkeypatch.setitem(copyreg._extension_cache, 0xF1, os.system)
    monkeypatch.setitem(copyreg._inverted_registry, 0xF1, ("os", "system"))
    monkeypatch.chdir(tmp_path)
    refused(saved(tmp_path, HOSTILE["EXT1"].replace(b"\xf0", b"\xf1")))
    assert os.listdir() == ["data.pkl"]


class Marks:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_that_acts_when_read_is_refused(tmp_path, protocol):
    mark = tmp_path / "mark"
    for made in (Marks(mark), record(answer=Marks(mark)), record(per_step_probs=[{"a": Marks(mark)}])):
        refused(saved(tmp_path, pickle.dumps([record(), made], protocol)))
        assert not mark.exists()


# --- broken files ---


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, protocol):
    data = pickle.dumps([record(answer="x" * 300)], protocol)
    for end in range(len(data)):
        refused(saved(tmp_path, data[:end]))


@pytest.mark.parametrize(
    "data", [b"", b"hello\n", b'{"question": 1}\n', b"PK\x03\x04" + bytes(90), bytes(99)], ids=range(5)
)
def test_what_is_no_pickle_is_refused(tmp_path, data):
    refused(saved(tmp_path, data))


def test_more_after_the_end_is_refused(tmp_path):
    assert "byte 6 " in refused(saved(tmp_path, pickle.dumps([], 2) + pickle.dumps([], 2)))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_changed_byte_breaks_nothing_but_the_file(tmp_path, protocol):
    data = pickle.dumps([record(answer="x" * 300), record()], protocol)
    for at in range(0, len(data), 3):
        for value in (data[at] ^ 1, data[at] ^ 32, 0, 255):
            try:
                published.read(saved(tmp_path, data[:at] + bytes([value]) + data[at + 1 :]))
            except InputError:
                pass


PIECES = [b"]", b"}", b"(", b")", b"l", b"d", b"a", b"e", b"s", b"u", b"R", b"N", b"\x88", b"(t", b"\x94", b"K\x01"]
PIECES += [b"h\0", b"h\1", b"q\0", b"q\1", b"r\0\0\0\0", b"G" + bytes(8), b"Va\n", b"X\1\0\0\0b", short(b"c"), b"I01\n"]
PIECES += [b"F0.5\n", b"ccollections\nOrderedDict\n", b"p1\n", b"g1\n", b"j\0\0\0\0", b"\x95" + bytes(8), b"\x80\4"]


@given(st.lists(st.sampled_from(PIECES), max_size=40) | st.lists(st.binary(max_size=9), max_size=6))
@settings(max_examples=500)
def test_any_bytes_are_a_list_or_refused(pieces):
    with tempfile.TemporaryDirectory() as folder:
        try:
            assert type(published.read(saved(Path(folder), b"".join(pieces) + b"."))) is list
        except InputError:
            pass


# --- files that would exhaust a machine ---

EXHAUSTING = {
    "deep lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "deep maps": b"\x80\x02]" + b"}Va\n" * 300_000 + b"}" + b"s" * 300_000 + b"a.",
    "a deep tuple as a key": b"\x80\x02]})" + b"\x85" * 3_000_000 + b"K\x01sa.",
    "a deep tuple as a key, with marks": b"](d" + b"(" * 2_000_000 + b"t" * 2_000_000 + b"K\x01sa.",
    "a list in itself": b"\x80\x02]q\0h\0a.",
    "a map in itself": b"\x80\x02]}q\0Vtype\nh\0sa.",
    "a high slot": b"]r\xff\xff\xff\x1fa.",
    "a high slot, in digits": b"]p999999999\na.",
    "a long text": b"\x80\x02]X\xff\xff\xff\xffa.",
    "a long frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x0f].",
    "a number of many digits": b"]I" + b"9" * 1_000_000 + b"\na.",
}


@pytest.mark.parametrize("name", EXHAUSTING)
def test_a_file_made_to_exhaust_is_refused(tmp_path, name):
    refused(saved(tmp_path, EXHAUSTING[name]))


def bomb(**changes):
    return [record(**changes)] * 3000


@pytest.mark.parametrize(
    "records",
    [
        bomb(per_step_probs=[{f"{i}": 0.0 for i in range(2000)}] * 2000),
        bomb(per_step_probs=[{"x" * 100_000: 1.0}]),
        bomb(question="x" * 100_000),
        [record(per_step_probs=[{"x" * 100_000: 1.0}] * 100_000)],
        [record(per_step_probs=[{f"{i}": 0.0 for i in range(20_000)}] * 20_000)],
    ],
    ids=["all", "token", "question", "one step", "one map"],
)
def test_a_small_file_that_would_be_written_out_large_is_refused_soon(tmp_path, records):
    path = saved(tmp_path, pickle.dumps(records))
    began = time.process_time()
    assert "far larger" in refused(path)
    assert time.process_time() - began < 20


# --- the command ---


def test_nothing_is_written_for_bad_input(tmp_path, capsys):
    path, out = saved(tmp_path, pickle.dumps([record(), record(answer=3)])), tmp_path / "out.jsonl"
    out.write_text("as it was")
    assert published.main([str(path), str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "record 2" in said.err
    assert out.read_text() == "as it was" and sorted(os.listdir(tmp_path)) == ["data.pkl", "out.jsonl"]


def test_an_out_that_cannot_be_written_is_told(tmp_path, capsys):
    path = saved(tmp_path, data := pickle.dumps([record()]))
    for out in (tmp_path, path, path / "out.jsonl", tmp_path / ("x" * 300)):
        assert published.main([str(path), str(out)]) == 2
        assert "Cannot write" in capsys.readouterr().err
    assert published.main([str(tmp_path / "no.pkl"), str(tmp_path / "out.jsonl")]) == 2
    assert published.main([str(tmp_path), str(tmp_path / "out.jsonl")]) == 2
    assert os.listdir(tmp_path) == ["data.pkl"] and path.read_bytes() == data


def test_the_command_converts_and_its_exit_code_tells(tmp_path):
    def command(*arguments):
        whole = [sys.executable, "-m", "lib.distillation.published", *map(str, arguments)]
        return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True)

    path, out = saved(tmp_path, pickle.dumps([record()])), tmp_path / "out.jsonl"
    done = command(path, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "records 1, in_context_cot 1" in done.stdout
    assert lines(out) == converted([record()])
    path.write_bytes(HOSTILE["GLOBAL, REDUCE"])
    done = command(path, tmp_path / "other.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("published: ") and done.stderr.count("\n") == 1
    assert command().returncode == 2
    assert sorted(os.listdir(tmp_path)) == ["data.pkl", "out.jsonl"]
