"""initctl: asks a node, on it or from outside, and shows the answers.

Exit status: 0 it worked, 1 the node refused or failed, 2 wrong usage, 3 no node to talk to, 130 Ctrl-C.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from initd.api.protocol import ApiError, Code
from initd.client import completion
from initd.client.commands import COMMANDS, OTHERS, Argument, Command
from initd.client.connection import DEFAULT_SOCKET, Client, vms
from initd.client.output import Style, to_json, to_yaml

FAILED, USAGE, NO_NODE, INTERRUPTED = 1, 2, 3, 130
_DIGITS = 18  # of a number; the protocol's integers have 64 bits
_NEXT = {
    Code.PERMISSION_DENIED: "run it as root on the node, or have a role granted in the node's configuration",
    Code.UNIMPLEMENTED: "the node is of another version than this initctl, see `initctl version`",
    Code.UNAVAILABLE: "see `initctl services`, and try again",
    Code.INTERNAL: "see `initctl dmesg` for what went wrong on the node",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run initctl with these arguments (sys.argv's if None); return its exit status. Wrong usage raises SystemExit."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words[:1] == [completion.ASK]:
            print("\n".join(completion.offers(words[1:])))
        else:
            _run(_parser().parse_args(words))
    except BrokenPipeError:  # of `initctl events | head`; Python would complain about standard output once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except ApiError as error:
        hint = _NEXT.get(error.code)
        return _fail(FAILED, f"{error.message} ({error.code}){f'; {hint}' if hint else ''}")
    except (ConnectionError, LookupError) as error:
        return _fail(NO_NODE, str(error.args[0]))
    except ValueError as error:
        return _fail(USAGE, str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _run(arguments: argparse.Namespace) -> None:
    command: Command = arguments.command
    match command.words:
        case "completion":
            print(completion.script(arguments.shell), end="")
        case "watch":
            from initd.client import live  # noqa: PLC0415 - only one command in twenty needs it

            live.watch(lambda: _connect(arguments), sys.stdout)
        case _:
            with _connect(arguments) as client:
                for item in _answers(client, command, arguments):
                    _show(command, item, getattr(arguments, "output", "table"))


def _answers(client: Client, command: Command, arguments: argparse.Namespace) -> Iterator[Any]:
    params = [getattr(arguments, argument.name) for argument in command.arguments]
    if command.words == "call":  # the user may name a method that streams, or one that does not
        method, texts = params
        result = yield from client.stream(method, *map(_from_json, texts))
        if result is not None:
            yield result
    elif command.streaming:
        yield from client.stream(command.method, *params)
    elif command.listed:
        yield list(client.stream(command.method, *params))
    else:
        yield client.call(command.method, *params)


def _show(command: Command, item: Any, form: str) -> None:
    match form:
        case "json":
            text = to_json(item, indent=None if command.streaming else 2)
        case "yaml":
            text = f"---\n{to_yaml(item)}" if command.streaming else to_yaml(item)
        case _:
            text = command.view(item, Style(sys.stdout))
    print(text, flush=command.streaming)


def _connect(arguments: argparse.Namespace) -> Client:
    where = vars(arguments)
    if "vm" in where:
        return Client(vms().resolve(arguments.vm))
    if "url" in where or "socket" in where:
        return Client(where.get("url") or arguments.socket)
    if not os.path.exists(DEFAULT_SOCKET):
        names = [machine["name"] for machine in vms().running()]
        hint = f"try --vm NAME; running: {', '.join(names)}" if names else "make boot starts one in a VM"
        raise ConnectionError(f"this machine runs no initd ({DEFAULT_SOCKET} is not there); {hint}")
    return Client()


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a bare word is easier to type than '"kubelet"'


def _parser() -> argparse.ArgumentParser:
    # Taken before and after the command alike; without defaults, since the inner parser's would win over what is given.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where = common.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help=f"the node's socket (default: {DEFAULT_SOCKET})")
    where.add_argument("--vm", metavar="NAME", help="a VM on this machine")
    where.add_argument("--url", help="unix:///PATH or vsock://CID[:PORT]")
    common.add_argument("--output", choices=("table", "json", "yaml"), help="form of the answer (default: table)")
    parser = argparse.ArgumentParser("initctl", description="Ask a node that runs initd.", parents=[common])
    levels = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for command in (*COMMANDS, *OTHERS):
        group, _, word = command.words.rpartition(" ")
        if group not in levels:
            first = levels[""].choices.get(group) or levels[""].add_parser(group, help=command.help, parents=[common])
            levels[group] = first.add_subparsers(metavar="COMMAND", required=first.get_default("command") is None)
        target = levels[group].add_parser(word, help=command.help, parents=[common])
        target.set_defaults(command=command)
        for argument in command.arguments:
            _add(target, argument)
    return parser


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    match argument:
        case Argument(name="params"):
            parser.add_argument(argument.name, nargs="*", help=argument.help)
        case Argument(default=None):
            parser.add_argument(argument.name, help=argument.help)
        case Argument(default=bool()):
            parser.add_argument(*argument.options, action="store_true", help=argument.help)
        case _:
            text = f"{argument.help} (default: {argument.default})"
            parser.add_argument(*argument.options, type=_count, default=argument.default, metavar="N", help=text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        expected = f"a whole number, 0 or more, of at most {_DIGITS} digits"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return int(text)


def _fail(status: int, message: str) -> int:
    print(f"initctl: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
