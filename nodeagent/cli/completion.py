"""`nodeagent completion`: the script that makes a shell complete commands, files and node names.

click does the completion itself, in a call of this program that the script makes with
_NODEAGENT_COMPLETE in its environment.
"""

from __future__ import annotations

import click

from nodeagent.cli.output import write


@click.command("completion", short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes nodeagent's arguments in a shell.

    \b
    bash: source <(nodeagent completion bash)
    zsh:  source <(nodeagent completion zsh)
    fish: nodeagent completion fish | source

    In the shell's start file, or as a file: /usr/share/bash-completion/completions/nodeagent,
    _nodeagent in a directory of zsh's $fpath, ~/.config/fish/completions/nodeagent.fish.
    """
    from click import shell_completion

    kind = shell_completion.get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    script = kind(click.Command("nodeagent"), {}, "nodeagent", "_NODEAGENT_COMPLETE")
    # not source(): it runs the bash of this machine, which an image need not have
    write(script.source_template % script.source_vars())
