"""Distillation targets, slowly: every way to write a group is cut by the student from the text's first letter on."""

import math

import torch


def ways(teacher, student, text, teacher_ids, logps, group, border):
    """{what the student has from the letter `border` on: probability} of one group of a text that both wrote.

    teacher_ids  of the whole text, the end of the sequence included; logps (positions, vocabulary)
    group        the teacher's positions [i, top): all but the last are as they are, the last is any token
    """
    i, top = group
    certain = math.exp(sum(logps[at, teacher_ids[at]].item() for at in range(i, top - 1)))
    before = teacher.decode(teacher_ids[: top - 1])
    found = {}
    for token in range(logps.shape[1]):
        p = certain * logps[top - 1, token].exp().item()
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
        if name:
            found[name] = found.get(name, 0.0) + p
    return found


def after(student, text, border):
    """The student's tokens of a text from the letter `border` on; None where one crosses it."""
    found = student(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = found["offset_mapping"]
    if any(start < border < end for start, end in spans):
        return None
    return tuple(token for token, (start, end) in zip(found["input_ids"], spans, strict=True) if start >= border)


def conditional(ways, own):
    """Of each of the group's tokens `own`: {token: probability}, given the ones before it; the rest is the tail."""
    named = {}
    for ids, p in ways.items():
        ids = own if ids == "own" else ids
        named[ids] = named.get(ids, 0.0) + p
    known = sum(named.values())
    found = []
    for at in range(len(own)):
        going = {ids: p for ids, p in named.items() if ids[:at] == own[:at] and len(ids) > at}
        mass = {}
        for ids, p in going.items():
            mass[ids[at]] = mass.get(ids[at], 0.0) + p * known / sum(going.values())
        found.append(mass)
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
