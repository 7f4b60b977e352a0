"""Puts a screenshot into the green screen of a photographed device."""
