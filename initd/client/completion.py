"""Completion scripts for bash, zsh and fish, made from the table of commands."""

from __future__ import annotations

from initd.client.commands import COMMANDS, OTHERS

_GLOBAL = {
    "socket": "path of the node's socket",
    "vm": "name of a VM",
    "url": "unix:///PATH or vsock://CID",
    "output": "form of the answer",
}
_FORMATS = "table json yaml"
_VMS = "$(command ls ${XDG_RUNTIME_DIR:-/tmp/initd-$(id -u)}/initd/vms 2>/dev/null)"  # as initd.client.vms.directory()
_FISH_VMS = "(command ls (set -q XDG_RUNTIME_DIR; and echo $XDG_RUNTIME_DIR; or echo /tmp/initd-(id -u))/initd/vms)"

# zsh runs it too (bashcompinit), where names like words and path are taken.
_BASH = """\
_initctl() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" typed="" index offers=""
    case "$previous" in
        --output) offers="{formats}" ;;
        --vm) offers="{vms}" ;;
        --socket) COMPREPLY=($(compgen -f -- "$current")); return ;;
        --url) return ;;
        *)
            for ((index = 1; index < COMP_CWORD; index++)); do
                case "${{COMP_WORDS[index]}}" in
                    --socket|--vm|--url|--output) ((index++)) ;;
                    -*) ;;
                    *) typed="${{typed:+$typed }}${{COMP_WORDS[index]}}" ;;
                esac
            done
            case "$typed" in
{cases}
            esac
            offers="$offers {options}" ;;
    esac
    COMPREPLY=($(compgen -W "$offers" -- "$current"))
}}
complete -F _initctl initctl
"""


def script(shell: str) -> str:
    """Return the script for bash, zsh or fish. Raises ValueError for another shell."""
    match shell:
        case "bash":
            return _bash()
        case "zsh":
            return f"#compdef initctl\nautoload -U +X bashcompinit && bashcompinit\n{_bash()}"
        case "fish":
            return _fish()
        case _:
            raise ValueError(f"found shell {shell!r}, expected bash, zsh or fish")


def offers() -> dict[str, dict[str, str]]:
    """For the words typed so far, what may come next, with its help. Longer words come first."""
    table: dict[str, dict[str, str]] = {"": {}}
    for command in (*COMMANDS, *OTHERS):
        first, _, second = command.words.partition(" ")
        table[""].setdefault(first, f"{first} {second}" if second else command.help)
        if second:
            table.setdefault(first, {})[second] = command.help
        arguments = table.setdefault(command.words, {})
        for argument in command.arguments:
            arguments.update(dict.fromkeys([*argument.options, *argument.known], argument.help))
    return dict(sorted(table.items(), key=lambda item: -len(item[0])))


def _bash() -> str:
    cases = []
    for typed, words in offers().items():
        pattern = f'"{typed}"|"{typed} "*' if typed else '""'
        cases.append(f'                {pattern}) offers="{" ".join(words)}" ;;')
    options = " ".join(f"--{name}" for name in _GLOBAL)
    return _BASH.format(cases="\n".join(cases), formats=_FORMATS, vms=_VMS, options=options)


def _fish() -> str:
    lines = ["complete -c initctl -f"]
    for name, text in _GLOBAL.items():
        values = {"output": f" -a '{_FORMATS}'", "vm": f" -a '{_FISH_VMS}'", "socket": " -F"}.get(name, "")
        lines.append(f'complete -c initctl -l {name} -r{values} -d "{text}"')
    for typed, words in offers().items():
        seen = " && ".join(f"__fish_seen_subcommand_from {word}" for word in typed.split()) or "__fish_use_subcommand"
        for word, text in words.items():
            kind = f"-a {word}"
            if word.startswith("-"):
                kind = f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
            lines.append(f'complete -c initctl -n "{seen}" {kind} -d "{text}"')
    return "\n".join([*lines, ""])
