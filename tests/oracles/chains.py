"""Problems solved anew from the text of their question alone. Each function gives (steps, answer)."""

import ast
import re

# What a sentence does to the number of things the asked-for person has; {me} is that person, the rest is any wording.
EVENTS = (
    ("*", r"{me} has (\d+) boxes with (\d+) \w+ in each"),
    ("*", r"{me} fills (\d+) bags and puts (\d+) \w+ into each bag"),
    ("+", r"{me} has (\d+) \w+ at home and (\d+) \w+ at school"),
    ("+", r"{me} has (\d+) more \w+ than \w+"),
    ("-", r"{me} has (\d+) fewer \w+ than \w+"),
    ("start", r"\w+ (?:has|starts with) (\d+) \w+"),
    ("start", r"There are (\d+) \w+ on {me}'s table"),
    ("+", r"{me} (?:buys|finds|wins) (\d+)\b.*"),
    ("+", r"(?!{me})\w+ gives {me} (\d+) \w+"),
    ("+", r"On \w+day, {me} gets another (\d+) \w+"),
    ("-", r"{me} gives (\d+) \w+ to (?!{me})\w+"),
    ("-", r"{me} loses (\d+)\b.*"),
    ("-", r"On \w+day, {me} sells (\d+) \w+"),
    ("-", r"(?!{me})\w+ borrows (\d+) \w+ from {me}"),
    ("-", r"Then (\d+) of the \w+ break"),
    ("*", r"Over the summer, the number of {me}'s \w+ becomes (\d+) times as large"),
    ("*", r"{me} trades every one of the \w+ for (\d+) new \w+"),
    ("/", r"{me} sorts the \w+ into (\d+) equal piles and keeps one pile"),
    ("/", r"{me} shares the \w+ equally among (\d+) people, {me} being one of them"),
)


def word_problem(question):
    """Reads sentence by sentence; raises where a sentence is none that is known or a share is not whole."""
    have, steps = None, []
    for (event, _), numbers in events(question):
        if event == "start":
            have = numbers[0]
            continue
        if len(numbers) == 2:
            have = numbers.pop(0)
        after = {"+": have + numbers[0], "-": have - numbers[0], "*": have * numbers[0], "/": have / numbers[0]}[event]
        assert after == int(after), question
        steps.append(f"<<{have}{event}{numbers[0]}={int(after)}>>")
        have = int(after)
    return steps, str(have)


def events(question):
    """Which of EVENTS each sentence tells, with its numbers."""
    *sentences, asked = re.split(r"(?<=[.?]) ", question)
    me = re.search(r"(?:does|left for) (\w+)", asked)[1]
    return [_event(sentence.rstrip("."), me) for sentence in sentences]


def _event(sentence, me):
    for event in EVENTS:
        if match := re.fullmatch(event[1].format(me=me), sentence):
            return event, [int(number) for number in match.groups()]
    raise ValueError(f"unknown sentence: {sentence}")


def modular_chain(question, modulus):
    start, *moves, end = question.split()
    assert end == "?"
    value, steps = int(start.removeprefix("v")), []
    while moves:
        sign, operand, *moves = moves
        n = int(operand.removeprefix("n"))
        value = value + n if sign == "+" else value - n if sign == "-" else value * n
        while value < 0:
            value += modulus
        while value >= modulus:
            value -= modulus
        steps.append(f"r{value}")
    return steps, str(value)


PYTHON = {"and": "&", "or": "|", "xor": "^", "not": "~", "true": "True", "false": "False"}
BOOLEAN = {ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor"}


def boolean_tree(question):
    """What Python makes of the brackets: "true", "false", ("not", x) or (operator, x, y)."""
    return _tree(ast.parse(" ".join(PYTHON.get(word, word) for word in question.split()), mode="eval").body)


def _tree(node):
    if isinstance(node, ast.Constant):
        return str(node.value).lower()
    if isinstance(node, ast.UnaryOp):
        return ("not", _tree(node.operand))
    return (BOOLEAN[type(node.op)], _tree(node.left), _tree(node.right))


def boolean_text(tree, outermost=True):
    """The question of a tree."""
    if isinstance(tree, str):
        return tree
    if tree[0] == "not":
        return f"not {boolean_text(tree[1], False)}"
    pair = f"{boolean_text(tree[1], False)} {tree[0]} {boolean_text(tree[2], False)}"
    return pair if outermost else f"( {pair} )"


def boolean(question):
    """By counting: of two operands `and` wants two that are true, `or` one or two, `xor` one."""
    steps = []

    def value(tree):
        if isinstance(tree, str):
            return tree
        operator, *operands = tree
        found = [value(operand) for operand in operands]
        wanted = {"not": [0], "and": [2], "or": [1, 2], "xor": [1]}[operator]
        result = "true" if found.count("true") in wanted else "false"
        steps.append(f"{f' {operator} '.join(found) if found[1:] else f'not {found[0]}'} = {result}")
        return result

    return steps, value(boolean_tree(question))


def addition(question):
    """Column i: the carries are those of the sums of the last i and the last i + 1 digits."""
    a, b, columns, _ = _operands(question, "+")
    steps = []
    for i in range(columns):
        into = (a % 10**i + b % 10**i) // 10**i
        out = (a % 10 ** (i + 1) + b % 10 ** (i + 1)) // 10 ** (i + 1)
        digit = (a + b) // 10**i % 10
        steps.append(f"{a // 10**i % 10} + {b // 10**i % 10} ( {into} ) = {digit} ( {out} )")
    return steps, backwards(a + b, columns + 1)


def multiplication(question):
    """Partial product i is a times digit i of b; the sum so far is a times the last i + 1 digits of b."""
    a, b, _, (n, m) = _operands(question, "*")
    steps = []
    for i in range(m):
        step = backwards(a * (b // 10**i % 10) * 10**i, n + 1 + i)
        step = f"+ {step}" if i > 0 else step
        steps.append(step if i in (0, m - 1) else f"{step} ( {backwards(a * (b % 10 ** (i + 1)), n + 1 + i)} )")
    return steps, backwards(a * b, n + m)


def backwards(value, width):
    return " ".join(f"{value:0{width}d}"[::-1])


def _operands(question, sign):
    left, right = (part.split() for part in question.split(sign))
    a, b = (sum(int(d) * 10**i for i, d in enumerate(digits)) for digits in (left, right))
    return a, b, max(len(left), len(right)), (len(left), len(right))
