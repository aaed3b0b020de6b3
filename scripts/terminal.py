"""Run `make train` in a terminal, for real, and draw what it showed: the picture in the README.

    python scripts/terminal.py                          scripts/terminal.svg, as `make picture` does
    python scripts/terminal.py --output elsewhere.svg -- make train ARGS="--epochs 3"

The lines are those that stay on the screen at the end, unedited and without colour. The picture is
an SVG of plain text, with no font, script or link in it, so that it shows wherever images do.
"""

import argparse
import os
import pty
import shlex
import subprocess
import sys
import termios
from pathlib import Path
from xml.sax.saxutils import escape

import pyte

REPOSITORY = Path(__file__).parents[1]
PICTURE = REPOSITORY / "scripts" / "terminal.svg"
COMMAND = ("make", "train")
MIN_COLUMNS = 80
SCREEN = (120, 400)  # columns and lines: nothing is to scroll away

# Of a character, in the units of the picture; monospace fonts are 0.6 as wide as they are high.
FONT, WIDTH, HEIGHT = 14, 8.4, 20
MARGIN, BAR = 22, 40
# A dark card, since it looks the same on a light page and on a dark one.
BACKGROUND, EDGE, TEXT, FAINT, PROMPT = "#1b1f27", "#3b4252", "#d8dee9", "#7b8494", "#8fbf7f"
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
LIGHTS = ("#e0645c", "#e0b04f", "#6fb467")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("command", nargs="*", default=list(COMMAND), help="after --")
    arguments = parser.parse_args()
    code, lines = run(arguments.command)
    if code:
        sys.exit(f"terminal: {shlex.join(arguments.command)} ended with {code}: no picture made")
    arguments.output.write_text(drawn(shlex.join(arguments.command), lines))
    print(f"{len(lines)} lines drawn in {arguments.output}")


def run(command: list[str]) -> tuple[int, list[str]]:
    """Run `command` in a terminal, from the repository's top; return its exit code and the screen.

    What it writes is passed on meanwhile, so that whoever waits sees it too.
    """
    screen = pyte.Screen(*SCREEN)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    columns, lines = SCREEN
    termios.tcsetwinsize(theirs, (lines, columns))
    # As a person's terminal would have it: a make that calls this tells the one below of itself.
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("MAKE")}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY, env=environment
    )
    os.close(theirs)
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how Linux says that nobody holds the other end any more
            data = b""
        if not data:
            break
        stream.feed(data)
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()
    os.close(ours)
    shown = "\n".join(line.rstrip() for line in screen.display).rstrip()
    return process.wait(), shown.splitlines()


def drawn(command: str, lines: list[str]) -> str:
    """Return the SVG of a terminal where `command` left `lines`."""
    columns = max([MIN_COLUMNS, *(len(line) for line in lines)])
    width = round(2 * MARGIN + columns * WIDTH)
    height = BAR + (len(lines) + 1) * HEIGHT + MARGIN
    lights = "\n".join(
        f'<circle cx="{MARGIN + 4 + 20 * place}" cy="{BAR // 2}" r="6" fill="{colour}"/>'
        for place, colour in enumerate(LIGHTS)
    )
    prompt = _text(0, f"$ {command}", f'<tspan fill="{PROMPT}">$</tspan> {escape(command)}')
    rows = "\n".join(
        _text(number, line, escape(line)) for number, line in enumerate(lines, start=1) if line
    )
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img">
<title>{escape(command)}, in a terminal</title>
<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" fill="{BACKGROUND}" \
stroke="{EDGE}"/>
{lights}
<g font-size="{FONT}" fill="{TEXT}" style="white-space: pre" font-family="{FONTS}">
<text x="{width / 2}" y="{BAR // 2 + 5}" fill="{FAINT}" text-anchor="middle">mnist-job</text>
{prompt}
{rows}
</g>
</svg>
"""


def _text(row: int, plain: str, markup: str) -> str:
    """Return one line; its length is given, so that columns stand whatever font there is."""
    y = BAR + row * HEIGHT + FONT
    # Leading blanks are skipped: not every viewer keeps them.
    skipped = len(plain) - len(plain.lstrip())
    x, length = MARGIN + skipped * WIDTH, (len(plain) - skipped) * WIDTH
    return (
        f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" xml:space="preserve">'
        f"{markup.lstrip()}</text>"
    )


if __name__ == "__main__":
    main()
