"""Tests without markers, measured because the settings say so."""

import unittest

kept = []


def test_leaking():
    kept.append(bytes(5_000))


def test_fixed():
    bytes(5_000)


class TestOld(unittest.TestCase):
    def test_method(self):
        kept.append(bytes(5_000))
