"""Completion for bash, zsh and fish: their scripts ask initctl itself what may come next."""

from initd.client.commands import COMMANDS, OTHERS
from initd.client.connection import vms

ASK = "__complete"  # the word by which a script asks; the words typed so far follow, the last one to be completed
_VALUES = {"--output": ["table", "json", "yaml"], "--socket": [], "--vm": [], "--url": []}
_BASH = f"""\
_initctl() {{ COMPREPLY=($(initctl {ASK} "${{COMP_WORDS[@]:1:COMP_CWORD}}")); }}
complete -o default -F _initctl initctl
"""
SCRIPTS = {
    "bash": _BASH,
    "zsh": f"#compdef initctl\nautoload -U +X bashcompinit && bashcompinit\n{_BASH}",
    "fish": f"complete -c initctl -f -a '(initctl {ASK} (commandline -opc)[2..] (commandline -ct))'\n",
}


def script(shell: str) -> str:
    """Return the script for bash, zsh or fish. Raises ValueError for another shell."""
    if shell not in SCRIPTS:
        raise ValueError(f"found shell {shell!r}, expected {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def offers(words: list[str]) -> list[str]:
    """What the last of the words, which may be empty, can become."""
    *before, current = words or [""]
    previous = ["", *before][-1]
    if previous == "--vm":
        found = [machine["name"] for machine in vms().running()]
    elif previous in _VALUES:
        found = _VALUES[previous]
    else:
        pairs = zip(["", *before], before, strict=False)
        typed = [word for last, word in pairs if not word.startswith("-") and last not in _VALUES]
        found = [*_following(typed), *_VALUES]
    return [word for word in found if word.startswith(current)]


def _following(typed: list[str]) -> list[str]:
    """The next words of commands that begin with those typed, and the arguments of the one that is typed whole."""
    found: list[str] = []
    for command in (*COMMANDS, *OTHERS):
        words = command.words.split()
        if words[: len(typed)] == typed:
            found += words[len(typed) : len(typed) + 1]
        if typed[: len(words)] == words:
            found += [word for argument in command.arguments for word in (*argument.options, *argument.known)]
    return list(dict.fromkeys(found))
