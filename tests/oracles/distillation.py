"""Distillation targets, slowly: every way to write a group is cut by the student from the text's first letter on."""

import itertools
import math

import torch


def ways(teacher, student, text, teacher_ids, logps, group, border):
    """{what the student has from the letter `border` on: p(last token)} of one group of a text that both wrote.

    teacher_ids  of the whole text, the end of the sequence included; logps (positions, vocabulary)
    group        the teacher's positions [i, top): all but the last are as they are, the last is any token
    """
    top = group[1]
    before = teacher.decode(teacher_ids[: top - 1])
    found = {}
    for token in range(logps.shape[1]):
        p = logps[top - 1, token].exp().item()
        if token == teacher_ids[top - 1]:
            name = "own"
        elif token == teacher.eos_token_id:
            name = after(student, before, border)
            name = None if name is None else (*name, student.eos_token_id)
        elif token in teacher.all_special_ids:
            continue
        else:
            whole = teacher.decode([*teacher_ids[: top - 1], token])
            name = after(student, whole, border) if "\ufffd" not in whole else None
        if name and (name == "own" or student.unk_token_id not in name):
            found[name] = found.get(name, 0.0) + p
    return found


def after(student, text, border):
    """The student's tokens of a text from the letter `border` on; None where one crosses it."""
    found = student(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = found["offset_mapping"]
    if any(start < border < end for start, end in spans):
        return None
    return tuple(token for token, (start, end) in zip(found["input_ids"], spans, strict=True) if start >= border)


def conditional(ways, own, ends, border, teacher_ends, logps):
    """Of each of the group's tokens `own`: {token: probability}, given those before it; the rest is the tail.

    ends                 letters at which the student's tokens of the group end
    teacher_ends, logps  of the teacher's tokens of the group but the last: where they end, how likely they were
    """
    named = {}
    for ids, p in ways.items():
        ids = own if ids == "own" else ids
        named[ids] = named.get(ids, 0.0) + p
    found = []
    for at in range(len(own)):
        held = ends[at - 1] if at else border
        certain = math.exp(sum(p for end, p in zip(teacher_ends, logps, strict=True) if end > held))
        alike = sum(p for ids, p in named.items() if all(a == b for a, b in zip(ids, own[:at], strict=False)))
        mass = {}
        for ids, p in named.items():
            if ids[:at] == own[:at] and len(ids) > at:
                share = p / alike * (sum(named.values()) if at else alike)
                mass[ids[at]] = mass.get(ids[at], 0.0) + certain * share
        found.append(mass)
    return found


def every_text(tokens, probabilities, length):
    """{text: probability} of all texts of `length` tokens; probabilities(tokens so far): one for each of `tokens`."""
    found = {}
    for ids in itertools.product(range(len(tokens)), repeat=length):
        p = math.prod(probabilities(ids[:at])[i] for at, i in enumerate(ids))
        text = "".join(tokens[i] for i in ids)
        found[text] = found.get(text, 0.0) + p
    return found


def divergence(logits, ids, mass, tail):
    """KL of each position over the named tokens and one event more, from whole tables of probabilities."""
    found = []
    for row, names, p, rest in zip(logits, ids, mass, tail, strict=True):
        q = row.softmax(-1)
        named = [(float(a), q[i]) for i, a in zip(names.tolist(), p.tolist(), strict=True) if a > 0]
        others = torch.ones_like(q, dtype=torch.bool)
        others[[i for i, a in zip(names.tolist(), p.tolist(), strict=True) if a > 0]] = False
        total = sum((a * (math.log(a) - b.log()) for a, b in named), q.new_zeros(()))
        if rest > 0:
            total = total + float(rest) * (math.log(float(rest)) - q[others].sum().log())
        found.append(total)
    return torch.stack(found)
