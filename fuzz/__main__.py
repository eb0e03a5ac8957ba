"""`python -m fuzz TARGET [libFuzzer options]`: run one target under atheris, without end unless told otherwise.

What was learnt stays in `.run/fuzz/TARGET`; octets that broke something are written to `.run/fuzz`.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mailq", "fuzz.targets"]):
    from fuzz import targets

TARGETS = {"reply": targets.reply, "job": targets.job, "header": targets.header, "message": targets.message}
HERE = Path(__file__).parent


def main() -> None:
    """Fuzz what the first argument names; the others are libFuzzer's."""
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"usage: python -m fuzz {{{','.join(TARGETS)}}} [libFuzzer options]")
    learnt = Path(".run/fuzz") / name
    learnt.mkdir(parents=True, exist_ok=True)
    defaults = [f"-artifact_prefix={learnt.parent}/{name}-", f"-dict={HERE / 'words' / name}.dict", "-max_len=8192"]
    atheris.Setup(["fuzz", *defaults, *options, str(learnt), str(HERE / "seeds" / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
