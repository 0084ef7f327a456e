"""The welcome: three calls to copy and paste, one for each way in.

Printed by `cli` when a server starts. Invariant: each one works as it stands, given the SDK it names.
"""

from __future__ import annotations


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
