"""`python -m lib.lessons build|grade|bundle`: student copies of the lessons, a grade, a file to hand in."""

import argparse
import os
import sys
from pathlib import Path

from lib.errors import InputError

EXAMPLES = """examples:
  python -m lib.lessons build lessons                  copies of the notebooks, with stubs for the solutions
  python -m lib.lessons grade lessons                  every exercise of every lesson
  python -m lib.lessons grade lessons --only 03        one lesson
  python -m lib.lessons bundle lessons --name ada      ada.zip, to hand in
  python -m lib.lessons bundle lessons --name ada --plan units --run units
  python -m lib.lessons grade ada.zip --json ada.json  what the teacher sees

exit codes: 0 done, whatever the grade; 2 bad input (one sentence says what); 130 interrupted
"""


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lib.lessons",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|grade|bundle")

    build = commands.add_parser("build", help="write student copies of the notebooks")
    build.add_argument("out", type=Path, metavar="FOLDER", help="where the copies go")

    grade = commands.add_parser("grade", help="grade a folder of lessons or a bundle")
    grade.add_argument("source", type=Path, metavar="FOLDER_OR_ZIP")
    grade.add_argument("--plan", help="lessons, units, units_smollm2 or a .toml file (default: the bundle's)")
    grade.add_argument("--only", nargs="+", metavar="LESSON", help="these lessons alone, such as 03")
    grade.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there, too")
    grade.add_argument("--seed", type=int, help="of the hidden questions (default: drawn anew, and shown)")
    grade.add_argument("--trust", action="store_true", help="run without isolation: your own work only")
    grade.add_argument("--base", default="", metavar="FOLDER_OR_ID", help="base model in place of the plan's")
    grade.add_argument("--device", default="cpu", help="cpu (default) or cuda")

    bundle = commands.add_parser("bundle", help="pack a hand-in, and try it")
    bundle.add_argument("source", type=Path, metavar="FOLDER", help="the folder with your lessons")
    bundle.add_argument("--name", required=True, help="whose hand-in it is")
    bundle.add_argument("--plan", default="lessons", help="lessons (default), units, units_smollm2 or a .toml file")
    bundle.add_argument("--run", metavar="RUN", help="take the models from outputs/RUN")
    bundle.add_argument("--out", type=Path, metavar="FILE", help="the zip (default: NAME.zip)")
    bundle.add_argument("--limit-mb", type=float, metavar="MB", help="of all files, unpacked (default: the plan's)")
    bundle.add_argument("--trust", action="store_true", help="try it without isolation")
    bundle.add_argument("--base", default="", metavar="FOLDER_OR_ID", help="base model in place of the plan's")
    bundle.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    try:
        {"build": _build, "grade": _grade, "bundle": _bundle}[args.command](args)
    except InputError as error:
        print(f"lessons: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"lessons: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lessons: interrupted", file=sys.stderr)
        return 130
    return 0


def _build(args: argparse.Namespace) -> None:
    from lib.lessons.build import build

    made = build(args.out)
    print(f"{args.out}: {len(made) - 1} lessons; begin with {args.out / 'README.md'}")


def _grade(args: argparse.Namespace) -> None:
    from lib.lessons.build import write_bytes
    from lib.lessons.grade import grade

    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise InputError(f"--json {args.json}: give a file in a folder that is there.")
    report = grade(args.source, args.plan, args.seed, args.trust, args.only, args.base, args.device)
    print(report.text())
    if args.json:
        write_bytes(args.json, report.json().encode())


def _bundle(args: argparse.Namespace) -> None:
    from lib.lessons.bundle import bundle
    from lib.stage import OUTPUTS

    run = OUTPUTS / args.run if args.run else None
    bundle(args.source, args.name, args.plan, run, args.out, args.limit_mb, args.trust, args.base, args.device)


if __name__ == "__main__":
    code = main()
    if code == 130:  # threads still watch sandboxes, which end with this process
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
