import unittest

from greeting import greet


class Greeting(unittest.TestCase):
    def test_greets_by_name(self):
        self.assertEqual(greet("Ada"), "Hello, Ada!")

    def test_ignores_spaces_around_the_name(self):
        self.assertEqual(greet("  Ada "), "Hello, Ada!")

    def test_refuses_an_empty_name(self):
        with self.assertRaises(ValueError):
            greet(" ")
