"""A Kubernetes API over HTTP, its objects as they are: dicts."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

Object = dict[str, Any]
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
WITHIN_S = 30.0


class Api:
    """One account's. Every call raises httpx.HTTPStatusError for what the server refuses."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **query: str | int) -> Object:
        return self._call("GET", path, query=query)

    def items(self, path: str, **query: str | int) -> list[Object]:
        found: list[Object] = self.get(path, **query)["items"]
        return found

    def create(self, path: str, thing: Object) -> Object:
        return self._call("POST", path, thing)

    def merge(self, path: str, change: Object, *, manager: str = "tests") -> Object:
        return self._call("PATCH", path, change, query={"fieldManager": manager}, kind=MERGE)

    def apply(self, path: str, thing: Object, *, manager: str, force: bool = False) -> Object:
        """Server-side."""
        query = {"fieldManager": manager, "force": str(force).lower()}
        return self._call("PATCH", path, thing, query=query, kind=APPLY)

    def path_of(self, thing: Object, namespace: str) -> str:
        """Of an object that a namespace has."""
        version = thing["apiVersion"]
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        (plural,) = (
            one["name"]
            for one in self.get(root)["resources"]
            if one["kind"] == thing["kind"] and "/" not in one["name"]
        )
        return f"{root}/namespaces/{namespace}/{plural}/{thing['metadata']['name']}"

    def delete(self, path: str, **body: Any) -> None:
        self._call("DELETE", path, body)

    def watch(self, path: str, *, since: str, for_s: int) -> Iterator[Object]:
        """What happens to the objects of a list from that version on, `for_s` seconds long."""
        query: dict[str, str | int] = {
            "watch": 1,
            "resourceVersion": since,
            "timeoutSeconds": for_s,
        }
        with self._client.stream("GET", path, params=query) as answer:
            answer.raise_for_status()
            for line in filter(None, answer.iter_lines()):
                yield json.loads(line)

    def _call(
        self,
        verb: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, Any] | None = None,
        kind: str = "application/json",
    ) -> Object:
        content = None if body is None else json.dumps(body)
        answer = self._client.request(
            verb, path, params=query, content=content, headers={"content-type": kind}
        )
        if answer.is_error:
            told = f"{verb} {path}: {answer.status_code} {answer.text}"
            raise httpx.HTTPStatusError(told, request=answer.request, response=answer)
        found: Object = answer.json()
        return found
