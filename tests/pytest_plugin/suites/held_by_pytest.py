"""Tests whose objects pytest itself holds: until the test has ended, or longer."""

import logging

import pytest


class Service: ...


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def client(service):
    client = Service()
    client.service = service
    return client


@pytest.fixture(scope="module")
def shared():
    return Service()


@pytest.fixture
def failing():
    service = Service()
    yield service
    raise RuntimeError(service)


def test_value_of_a_fixture(assert_collected, service, client):
    assert_collected(service)
    assert_collected(client)


def test_logged_with_a_traceback(assert_collected, caplog):
    service = assert_collected(Service())
    try:
        raise LookupError(service)
    except LookupError:
        logging.getLogger("held").exception("%s", service)
    assert len(caplog.records) == 1


def test_expected_exception(assert_collected):
    service = assert_collected(Service())
    with pytest.raises(LookupError) as caught:
        raise LookupError(service)
    assert caught


def test_failing(assert_collected):
    service = assert_collected(Service())
    assert service is None, "what is really wrong"


@pytest.mark.xfail
def test_failing_as_expected(assert_collected):
    service = assert_collected(Service())
    assert service is None


def test_skipping(assert_collected):
    service = assert_collected(Service())
    pytest.skip(f"without {service}")


def test_failing_teardown(assert_collected, failing):
    assert_collected(failing)


def test_value_for_the_module(assert_collected, shared):
    assert_collected(shared)


@pytest.mark.parametrize("given", [Service()])
def test_parameter(assert_collected, given):
    assert_collected(given)
