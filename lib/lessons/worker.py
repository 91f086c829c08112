"""What runs inside the sandbox: `python -m lib.lessons.worker`, started by `lib.lessons.sandbox` and by nobody else.

Two kinds of job. "exercise" makes the reader's function and tries the invariants of `lib.lessons.check` on it: this is
the one place of lib that executes code out of a notebook (`define`), and only after `confine`. "answer" asks a model
questions; right answers never come here.

The reader's code shares a process with the invariants, as it must, since they call it. What they are is noted before
it runs and compared afterwards, and a function that is certainly wrong is tried as well. That catches who replaces a
check, its data or the functions it uses. It cannot catch code that puts everything back before it is looked at, or one
that writes into the frames of the check on the stack: a pass says that nothing crude was done, not that nothing was.
"""

import json
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable
from json.encoder import c_make_encoder, encode_basestring_ascii

from lib import prompts
from lib.errors import InputError
from lib.lessons import check, confine
from lib.lessons.plain import plainly

LONGEST = 2000  # characters of a message
WATCHED = ("builtins", "json", "json.encoder", "math", "operator", "random", "itertools", "functools", "warnings")
WATCHED += ("torch", "torch.nn.functional", "numpy", "fractions", "re", "copy", "tempfile", "traceback")
LACKING = ("MemoryError", "bad_alloc", "allocate memory", "not enough memory", "out of memory", "failed to map segment")


def main() -> None:
    """Confine this process as the sandbox asks (the one argument), then do the job that stands on stdin."""
    setting = json.loads(sys.argv[1])
    if setting["trusted"]:
        confine.end_with_parent()
    else:
        try:
            confine.enter()
        except OSError as error:
            _say(setting["control"], error=error.strerror or str(error))
            os._exit(1)
    child = os.fork()
    if child:
        _wait(child, setting)
    try:
        confine.end_with_parent()
        limits = setting["limits"]
        threads = None if setting["trusted"] else 256
        if not setting["trusted"]:
            confine.confine(setting["scratch"], limits["scratch_mb"], setting["read"], setting["write"], setting["gpu"])
        os.chdir(setting["scratch"])
        memory = None if setting["gpu"] else limits["memory_mb"]  # a GPU's driver reserves addresses by the terabyte
        seconds = limits["seconds"] * (os.cpu_count() or 1)
        confine.limit(seconds, memory, limits["scratch_mb"], limits["files"], threads)
    except OSError as error:
        _say(setting["control"], error=error.strerror or str(error))
        os._exit(1)
    os.close(setting["control"])
    try:
        _work(setting["reply"])
    except BaseException:  # a job that is none, or no memory to say anything with
        traceback.print_exc()
    finally:
        os._exit(70)


def _say(control: int, **said) -> None:
    os.write(control, json.dumps(said).encode() + b"\n")


def _wait(child: int, setting: dict) -> None:
    """The launcher: tells which process works, waits for it, tells how it ended, and ends."""
    _say(setting["control"], pid=child)
    for end in (0, 1, 2, setting["reply"]):
        os.close(end)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    _say(setting["control"], status=status)
    os._exit(0)


def _work(reply: int) -> None:
    """Read the job, do it, reply, end at once: nothing that the job left behind gets a turn."""
    encode, write, leave = _encoder(), os.write, os._exit
    sent = json.loads(sys.stdin.buffer.readline())
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    job, head = sent["job"], sent["nonce"].encode() + b" "
    flush = sys.stdout.flush
    try:
        value = {"exercise": exercise, "answer": answer, "probe": lambda job: {"probe": True}}[job["kind"]](job)
    except InputError as error:
        value = {"error": str(error)[:LONGEST], "note": str(error)[:LONGEST]}
    except MemoryError:
        value = {"error": "out of memory", "note": "it ran out of memory", "memory": True}
    line = head + encode(value) + b"\n"
    while line:
        line = line[write(reply, line) :]
    try:
        flush()
    finally:
        leave(0)


def _encoder() -> Callable:
    """JSON as bytes, by an encoder that later changes to the module json do not reach."""
    if c_make_encoder is None:
        return lambda value: json.dumps(value).encode()
    encode = c_make_encoder(None, repr, encode_basestring_ascii, None, ": ", ", ", False, False, False)
    join = "".join
    return lambda value: join(encode(value, 0)).encode()


def is_reply(job: dict, value) -> bool:
    """Has a reply the form that its job asks for?"""
    if not isinstance(value, dict) or not all(isinstance(value.get(k, ""), str) for k in ("note", "error")):
        return False
    if "error" in value:
        return True
    if job["kind"] == "exercise":
        rows = value.get("rows")
        good = isinstance(rows, list) and rows and isinstance(value.get("tampered"), bool)
        return bool(good) and all(
            isinstance(r, list) and list(map(type, r)) == [str, bool, str] and len(r[0] + r[2]) <= 2 * LONGEST
            for r in rows
        )
    if job["kind"] == "answer":
        n = len(job["questions"])
        texts, finished = value.get("texts"), value.get("finished")
        return (
            all(isinstance(part, list) and len(part) == n for part in (texts, finished))
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(end, bool) for end in finished)
            and type(value.get("parameters")) is int
            and type(value.get("seconds")) is float
        )
    return value.get("probe") is True


# ----- exercises
class CertainlyWrong(RuntimeError):
    """What the function raises that no invariant may accept."""


def wrong(*_, **__):
    """The function that is certainly wrong."""
    raise CertainlyWrong("this is no solution")


def exercise(job: dict) -> dict:
    """{"rows", "tampered", "note", "memory"} of an exercise: see `lib.lessons.check.check` for rows.

    "tampered": the checks, their data or what they use were changed, or accept a function that is certainly wrong.
    """
    number, run, compare, strict = job["number"], check.check, changed, os.environ.pop
    strict("WORKBENCH_STRICT", None)
    check.find(number)
    accepted = [ok for _, ok, _ in run(number, wrong).rows]  # also loads all that the invariants use
    before = snapshot()
    try:
        function, rows = define(job)
        strict("WORKBENCH_STRICT", None)
        if function is not None:
            try:
                rows = [list(row) for row in run(number, plainly(function)).rows]
            except BaseException as error:  # SystemExit and the like pass through a check
                rows = [["your function", False, f"raised {said(error)}"]]
        strict("WORKBENCH_STRICT", None)
        touched = compare(before)
        tampered = bool(touched) or [ok for _, ok, _ in run(number, wrong).rows] != accepted
    except BaseException as error:  # whatever hides in what was left behind
        rows, touched, tampered = [["your cell", False, f"raised {said(error)}"]], [], True
    rows = [[str(what)[:LONGEST], ok is True, str(why)[:LONGEST]] for what, ok, why in rows]
    failed = [f"{what} {why}" for what, ok, why in rows if not ok]
    note = "every invariant holds" if not failed else f"{len(failed)} of {len(rows)} do not hold: {failed[0]}"
    if tampered:
        note = "the checks themselves were changed" + (f": {', '.join(touched[:3])}" if touched else "")
    short = any(not ok and any(word in why for word in LACKING) for _, ok, why in rows)
    return {"rows": rows, "tampered": tampered, "note": note[:LONGEST], "memory": short}


def define(job: dict):
    """(the function, []) that the cells of a job define, or (None, rows) that say why there is none.

    Executes code out of a notebook: `exec` is allowed here and nowhere else.
    """
    module = types.ModuleType("lesson")
    sys.modules["lesson"] = module  # where dataclasses and the like look for it
    space = module.__dict__
    try:
        exec(job.get("imports", ""), space)
        space.update(job.get("variables", {}))
        for cell in job["cells"]:
            exec(cell, space)
    except BaseException as error:  # SystemExit, too
        return None, [["your cell", False, f"raised {said(error)}"]]
    function = space.get(job["function"])
    if not callable(function):
        return None, [["your cell", False, f"defines no function {job['function']}"]]
    return function, []


def said(error: BaseException) -> str:
    """An exception in words; its own `__str__` is not trusted."""
    try:
        return f"{type(error).__name__}: {error}"[:LONGEST]
    except BaseException:
        return "an exception that cannot be shown"


def snapshot() -> dict[str, object]:
    """{name: what it is} of what a check rests on: its functions, their code, its data, and the libraries it calls."""
    found = {}
    for name, module in list(sys.modules.items()):
        ours = name == "__main__" or name.startswith("lib.")
        if module is None or not (ours or name in WATCHED):
            continue
        found[name] = module
        for key, value in list(vars(module).items()):
            if callable(value) or isinstance(value, types.ModuleType):
                found[f"{name}.{key}"] = value
            elif ours and name.startswith("lib.lessons.") and key.isupper():
                found[f"{name}.{key}"] = repr(value)
            if ours and isinstance(value, types.FunctionType):
                found[f"{name}.{key} (code)"] = (value.__code__, repr(value.__defaults__), repr(value.__kwdefaults__))
    if torch := sys.modules.get("torch"):
        found |= {f"Tensor.{key}": value for key, value in vars(torch.Tensor).items() if callable(value)}
        found |= {f"Tensor._.{key}": value for key, value in vars(torch._C.TensorBase).items() if callable(value)}
    return found


def changed(before: dict[str, object], look: Callable = snapshot, same: Callable = isinstance) -> list[str]:
    """Names of what is no longer as it was, or is new in a module that was there: it could stand before a builtin."""
    now, absent = look(), object()
    found = []
    for name, value in before.items():
        other = now.get(name, absent)
        if other is not value and not (same(value, (str, tuple)) and other == value):
            found.append(name)
    new = [name for name, value in now.items() if name not in before and not same(value, types.ModuleType)]
    return found + [name for name in new if name.rpartition(".")[0] in before and not name.endswith(" (code)")]


# ----- questions for a model
def answer(job: dict) -> dict:
    """{"texts", "finished", "parameters", "seconds"}: the greedy completions of a model, in the order of the questions.

    Weights are read from *.safetensors alone; an adapter is laid on `base`, whatever base its own config names.
    """
    import time

    from lib import generation, models
    from lib.decoding_calculator import Calculator

    base, adapter = job["base"], job.get("adapter")
    models.seed_everything(job.get("seed", 0))
    check_files(base, adapter)
    check_size(base, job["max_parameters"])
    device = job.get("device", "cpu")
    try:
        model, tokenizer = models.load_model(base, None, job.get("dtype", "float32"), device)
        if adapter:
            model = with_adapter(model, adapter)
        parameters = sum(p.numel() for p in model.parameters())
        if parameters > job["max_parameters"]:
            raise too_large(parameters, job["max_parameters"])
        asked = job.get("prompts") or [prompt(job, tokenizer, question) for question in job["questions"]]
        calculator = Calculator(tokenizer) if job.get("calculator") else None
        began = time.perf_counter()
        found = generation.generate(model.eval(), tokenizer, asked, job["max_new_tokens"], calculator=calculator)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise MemoryError from None
        raise InputError(f"The model {base} cannot be asked ({said(error)[:300]}); is it whole?") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The model {base} cannot be asked ({said(error)[:300]}); is it whole?") from None
    seconds = time.perf_counter() - began
    texts = [generated.text for generated in found]
    note = f"{len(texts)} questions were answered"
    finished = [bool(generated.finished) for generated in found]
    return {"texts": texts, "finished": finished, "parameters": parameters, "seconds": seconds, "note": note}


def check_files(base: str, adapter: str | None) -> None:
    """Raise InputError for a base or an adapter whose weights are not safetensors."""
    if os.path.isdir(base):
        if os.path.exists(os.path.join(base, "adapter_config.json")):
            raise InputError(f"{base}: an adapter stands where the base model should; save the whole model there.")
        weights = ("model.safetensors", "model.safetensors.index.json")
        if not any(os.path.exists(os.path.join(base, name)) for name in weights):
            raise InputError(f"{base}: there is no model.safetensors; save the base model there.")
    for name in ("adapter_config.json", "adapter_model.safetensors") if adapter else ():
        if not os.path.exists(os.path.join(adapter, name)):
            raise InputError(f"{adapter}: there is no {name}; save the LoRA adapter there.")


def check_size(base: str, most: int) -> None:
    """Raise InputError for a base with more parameters than allowed, before there is memory for any of them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lib import models

    try:
        config = AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the library raises many kinds for a broken file
        raise models.not_found(base, error) from None
    if (parameters := sum(p.numel() for p in model.parameters())) > most:
        raise too_large(parameters, most)


def too_large(parameters: int, most: int) -> InputError:
    """The sentence for a model with too many parameters."""
    return InputError(f"The model has {parameters:,} parameters, and {most:,} are allowed; hand in a smaller one.")


def with_adapter(model, adapter: str):
    """The model with a LoRA adapter on it."""
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(adapter)
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            raise InputError(f"{adapter}: an adapter of the kind {config.peft_type}; hand in a LoRA adapter.")
        config.base_model_name_or_path, config.inference_mode = None, True
        return PeftModel.from_pretrained(model, adapter, config=config, use_safetensors=True)
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"The adapter {adapter} does not fit its base ({said(error)[:300]}); save it again.") from None


def prompt(job: dict, tokenizer, question: str) -> str:
    """What the model reads: the bare question, or a chat with the worked examples as turns."""
    if job["form"] == "tagged":
        return question
    if not tokenizer.chat_template:
        raise InputError(f"{job['base']} has no chat template; hand in chat_template.jinja, or use the tagged form.")
    messages = [{"role": "system", "content": job["system"]}] if job.get("system") else []
    for asked, chain in job.get("shots", []):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": chain}]
    messages.append({"role": "user", "content": question})
    day = prompts.CHAT_DATE  # as where it learned
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string=day)


if __name__ == "__main__":
    main()
