"""A test whose object is still held at its end, and one whose object is not."""

registry = []


class Service: ...


def test_kept(assert_collected):
    registry.append(assert_collected(Service()))


def test_collected(assert_collected):
    service = assert_collected(Service())
    service.itself = service
