"""The server's description of itself agrees with what it is."""

import re

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.routing import Route

from mobileo_mlx.generation_options import OPTIONS, AnswerOptions
from mobileo_mlx.options import declared
from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.openapi import make_document
from mobileo_mlx.serving.settings import ServerSettings

PAGE = re.compile(r"/(page/.*|favicon\.ico)?$")  # what is no API
METHODS = ("get", "post", "delete", "put", "patch")


@pytest.fixture(scope="module")
def document():
    return make_document(ServerSettings(max_steps=77, max_side=1000, max_pictures=3), 64)


def test_it_is_valid(document):
    definitions = pytest.importorskip("schemathesis.specs.openapi.definitions")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(definitions.OPENAPI_31).validate(document)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    if isinstance(value, list):
        for inside in value:
            yield from references(inside)


def test_references_lead_somewhere_and_all_objects_are_used(document):
    used = {*references(document["paths"]), *references(document["components"])}
    there = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in document["components"][kind]
    }
    assert used <= there
    assert {name for name in there - used if "/schemas/" in name} == set()


def test_every_route_is_described_and_every_description_has_a_route(service, document):
    routes = {
        (re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path), method.lower())
        for route in make_app(service).routes
        if isinstance(route, Route) and not PAGE.match(route.path)
        for method in route.methods - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item if method in METHODS}
    assert described == routes


def test_operations_are_told_apart(document):
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in document["tags"]}
    assert {tag for operation in operations for tag in operation["tags"]} == tags


def test_options_are_those_that_are_declared(document):
    schemas = document["components"]["schemas"]
    for name, options in {
        "GenerateJob": OPTIONS["generate"],
        "EditJob": OPTIONS["edit"],
        "ImageRequest": OPTIONS["generate"],
        "ImageEditForm": OPTIONS["edit"],
        "AnswerJob": AnswerOptions,
        "ChatRequest": AnswerOptions,
    }.items():
        wanted = {option for option, one in declared(options).items() if one.kind is not None}
        assert wanted <= set(schemas[name]["properties"]), name
    steps = schemas["GenerateJob"]["properties"]["steps"]
    assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 77, 20)
    width = schemas["EditJob"]["properties"]["width"]
    assert (width["minimum"], width["maximum"], width["multipleOf"]) == (64, 960, 64)
    assert schemas["EditJob"]["properties"]["strength"]["exclusiveMinimum"] == 0
    assert schemas["GenerateJob"]["properties"]["scheduler"]["enum"] == ["dpm++", "dpm++3", "euler", None, ""]
    assert schemas["ImageRequest"]["properties"]["n"]["maximum"] == 3


def test_a_key_is_asked_for_where_there_is_one(document):
    assert "security" not in document
    locked = make_document(ServerSettings(api_key="secret"), 64)
    assert locked["security"] == [{"key": []}]
    assert "secret" not in str(locked)
    open_to_all = {path for path, item in locked["paths"].items() if item.get("get", {}).get("security") == []}
    assert open_to_all == {
        "/health",
        "/openapi.json",
        "/docs",
        "/v1/pictures/{id}/content",
        "/v1/pictures/{id}/thumbnail",
    }


def test_the_page_shows_all_of_it_without_addresses_of_others(client):
    document = client.get("/openapi.json").json()
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "style-src 'self'" in answer.headers["content-security-policy"]
    page = answer.text
    for path, item in document["paths"].items():
        assert path in page
        assert all(f'id="{operation["operationId"]}"' in page for operation in item.values())
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(re.findall(r'id="([^"]+)"', page)) | {"Error"}
    assert set(re.findall(r'(?:src|href)="([^#"][^"]*)"', page)) == {"/page/docs.css", "/openapi.json", "/"}
    assert "<script" not in page
    assert "style=" not in page
