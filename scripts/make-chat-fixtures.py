#!/usr/bin/env python3
"""Writes experiments/src/generate/chat_fixtures.json: chat templates of the kinds that models come with, and what transformers makes of
conversations with them.

    pip install transformers==5.24.0 jinja2==3.1.6
    scripts/make-chat-fixtures.py
"""

import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

TARGET = Path(__file__).resolve().parent.parent / "experiments/src/generate/chat_fixtures.json"
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
TEMPLATES = {
    "turns in marks": "{% for message in messages %}" + TURN + "{% endfor %}" + ASK,
    "a default system message": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}" + TURN + "{% endfor %}" + ASK,
    "a branch for tools first": "{%- if tools %}\n    {{- '# Tools\\n' }}\n{%- else %}\n    {%- if messages[0].role != 'system' %}\n"
    "        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
    "{%- for message in messages %}\n    " + TURN.replace("{{", "{{-") + "\n{%- endfor %}\n" + ASK,
    "a system message inside the first turn, roles that must alternate": "{% if messages[0]['role'] == 'system' %}"
    "{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' "
    "+ message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}",
    "headers and a trimmed content": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|header|>' + message['role'] + '<|/header|>\\n\\n' + message['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}",
    "another name for the assistant, no system role": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<turn>' + role + '\\n' + message['content'] "
    "| trim + '</turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}",
    "the end token behind each answer": "{% for message in messages %}{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
    "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "a namespace, thoughts of earlier turns taken out": "{%- set ns = namespace(last=-1) %}\n{%- for message in messages[::-1] %}\n"
    "    {%- set index = (messages | length - 1) - loop.index0 %}\n    {%- if ns.last < 0 and message.role == 'user' %}\n"
    "        {%- set ns.last = index %}\n    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' and '</think>' in message.content and loop.index0 < ns.last %}\n"
    "        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n    {%- else %}\n"
    "        {%- set content = message.content %}\n    {%- endif %}\n    {{- '<|' + message.role + '|>' + content + '\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|assistant|>' }}\n    {%- if enable_thinking is defined and "
    "enable_thinking is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}\n",
    "macros and JSON": "{%- macro turn(message) -%}\n<|start|>{{ message.role }}<|message|>{{ message | tojson }}<|end|>\n{%- endmacro -%}\n"
    "{%- for message in messages %}\n{{- turn(message) }}\n{%- endfor %}\n{{- {'n': messages | length, 'é': [1, 2.5, none]} | "
    "tojson(indent=2) }}\n{%- if add_generation_prompt %}<|start|>assistant{% endif %}",
    "loop controls and methods": "{% for message in messages %}{% if message.role.upper() == 'SYSTEM' %}{% continue %}{% endif %}"
    "{% if loop.index > 3 %}{% break %}{% endif %}{{ message.role.title() }}: {{ message.content.replace('e', 'E').rstrip() }}"
    "{% if message.content.startswith('Hi') %} (greeting){% endif %}\n{% endfor %}{{ messages | length ~ ' turns' }}",
    "marks of what was generated": "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + eos_token }}{%- endgeneration %}{% else %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endif %}{% endfor %}",
    "truth values, options of JSON": "{% for message in messages %}{{ message.role == 'user' }} {{ message.name }}{{ none }} "
    "{{ message | tojson(ensure_ascii=true) }} {{ [1, {}, [], true] | tojson(separators=(',', ':')) }}\n"
    "{{ {'a': [], 'b': {}, 'c': [[1], {'d': none}]} | tojson(indent=4) }}{% endfor %}",
    "texts and lists of parts": "{%- for message in messages -%}\n{%- if message['content'] is string -%}\n{{ message['content'] | trim }}\n"
    "{%- elif message['content'] is iterable -%}\n{%- for part in message['content'] -%}{{ part['text'] | trim }}{%- endfor -%}\n"
    "{%- else -%}\n{{ raise_exception('Invalid content type') }}\n{%- endif -%}\n{{ '|' }}\n{%- endfor -%}\n",
}
SYSTEM = {"role": "system", "content": "You know é, <b>&</b> and \"quotes\"."}
ASKED = {"role": "user", "content": "Hi there \n"}
ANSWER = {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nHello!"}
AGAIN = {"role": "user", "content": "And now?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": " Look "}, {"type": "text", "text": "here."}]}
CONVERSATIONS = [
    ([ASKED], True),
    ([SYSTEM, ASKED], True),
    ([ASKED, ANSWER, AGAIN], True),
    ([SYSTEM, ASKED, ANSWER, AGAIN], True),
    ([ASKED, ANSWER], False),
    ([SYSTEM, ASKED, ANSWER, AGAIN], False),
]


def render(template, messages, asks_for_answer):
    """The text, or why the template refuses the conversation."""
    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=asks_for_answer, **SPECIAL_TOKENS
        )
        return {"text": rendered[0], "refused": None}
    except jinja2.TemplateError as error:
        return {"text": None, "refused": str(error)}


def conversations(name):
    """Those that a template of this kind is made for."""
    return [*CONVERSATIONS, ([PARTS, ANSWER], False)] if "parts" in name else CONVERSATIONS


def main():
    fixtures = {
        name: {
            "template": template,
            "conversations": [
                {"messages": messages, "asks_for_answer": asks} | render(template, messages, asks)
                for messages, asks in conversations(name)
            ],
        }
        for name, template in TEMPLATES.items()
    }
    TARGET.write_text(json.dumps(fixtures, indent=1, ensure_ascii=False) + "\n")
    n_refused = sum(c["text"] is None for fixture in fixtures.values() for c in fixture["conversations"])
    print(f"{TARGET}: {len(fixtures)} templates, {len(CONVERSATIONS)} conversations each or one more, {n_refused} refused by their template")


if __name__ == "__main__":
    main()
