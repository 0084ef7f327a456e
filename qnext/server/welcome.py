"""The welcome: which models answer, the first key, and three calls to copy and paste, one for each way in.

Printed by `cli` when a server starts. Invariant: each call works as it stands, given the SDK it names.
"""

from __future__ import annotations

from rich.console import Console

from .settings import Settings


def greet(console: Console, settings: Settings, models: list[str], secret: str | None) -> None:
    """`secret` is the first key, if it was made just now."""
    base = f"http://{settings.host}:{settings.port}"
    console.print(f"at {base}, OpenAI and DashScope protocols. Ctrl-C ends it.", soft_wrap=True)
    for name in models:
        aliases = [alias for alias, target in settings.aliases.items() if target == name]
        console.print(f"  {name}" + (f"  (also asked for as {', '.join(aliases)})" if aliases else ""))
    if secret:
        console.print(f"\nYour API key, shown this once: [bold green]{secret}[/]")
    else:
        console.print("\nYour keys of earlier starts are valid; `qnext keys create` makes another.")
    console.print("\nTo try it, in another terminal:\n")
    calls = example_calls(base, secret or "YOUR_KEY", models[0])
    console.print(calls, markup=False, highlight=False, soft_wrap=True)


def example_calls(base_url: str, key: str, model: str) -> str:
    """curl, `openai` and `dashscope` against the server at `base_url`, such as http://127.0.0.1:8000."""
    base_url = base_url.rstrip("/")
    return f"""\
# curl
curl {base_url}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

# openai: pip install openai
from openai import OpenAI
client = OpenAI(base_url="{base_url}/compatible-mode/v1", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello!"}}])
print(answer.choices[0].message.content)

# dashscope: pip install dashscope
import dashscope
dashscope.base_http_api_url = "{base_url}/api/v1"
answer = dashscope.Generation.call(model="{model}", prompt="Hello!", api_key="{key}")
print(answer.output["text"] or answer.output.choices[0].message.content)
"""
