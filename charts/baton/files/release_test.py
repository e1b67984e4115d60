"""`helm test`: one pod asks for an answer and waits with a doctor; the other comes to it."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

SIZES = (40, 100, 250, 600)
"""Sentences of a prompt: longer ones where a decode worker would be quicker than a hand-over."""
KEY = os.environ.get("BATON_API_KEY", "").split(",")[0].strip()
WITHIN_S = 240.0


def call(path, body=None):
    headers = {"content-type": "application/json"}
    if KEY:
        headers["authorization"] = f"Bearer {KEY}"
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(os.environ["ROUTER"] + path, data, headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer), answer.headers.get("x-baton-route", "")


def ask(model, size):
    """One answer to a prompt that nothing has cached; the workers that made it."""
    told = " ".join(f"The code of lantern {uuid.uuid4().hex[:6]} is {n}." for n in range(size))
    question = {"role": "user", "content": told + " What is the code of the first lantern?"}
    body = {"model": model, "messages": [question], "max_tokens": 16, "temperature": 0}
    answer, route = call("/v1/chat/completions", body)
    tokens = answer["usage"]["completion_tokens"]
    sys.stdout.write(f"{model}: {tokens} tokens, {route}\n")
    assert tokens > 0, answer
    return route.split(";")[0].split(">")


def chat():
    # Without a length: its last worker has left, as that of a name that was changed a moment ago.
    listed = [one for one in call("/v1/models")[0]["data"] if one["max_model_len"]]
    models = [one["id"] for one in listed if "alias_for" not in json.dumps(one)]
    if not models:
        sys.exit("no model is served")
    for model in models:
        if not any(len(set(made)) == 2 or os.environ["APART"] == "0" for made in answers(model)):
            sys.exit(f"{model}: no request was prefilled and decoded in different pods")


def answers(model):
    sizes, until = list(SIZES), time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        for size in list(sizes):
            try:
                yield ask(model, size)
            except urllib.error.HTTPError as error:
                if error.code != 400 or size == SIZES[0]:
                    raise SystemExit(f"{model}: {error}: {error.read().decode()}") from error
                sizes.remove(size)  # longer than the model's context
        time.sleep(0.5)


def doctor(*flags):
    command = (sys.executable, "-m", "controlplane.cli.entry", "doctor", *flags)
    return subprocess.run(command, check=False).returncode


def main():
    if os.environ.get("JOB_COMPLETION_INDEX", "0") == "0":
        chat()
        port = os.environ["DOCTOR"].rpartition(":")[2]
        sys.exit(
            doctor("--serve", "--host", os.environ["LISTEN"], "--port", port, "--wait-s", "300")
        )
    until = time.monotonic() + WITHIN_S
    while doctor("--peer", os.environ["DOCTOR"]) != 0:
        if time.monotonic() > until:
            sys.exit("no doctor answered, or nothing moves KV between the two pods")
        time.sleep(2)


main()
