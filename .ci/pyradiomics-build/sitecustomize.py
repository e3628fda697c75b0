"""Lets pyradiomics 3.0.1 build on Python >= 3.12: its bundled versioneer asks for a class that was removed."""

import configparser

if not hasattr(configparser, "SafeConfigParser"):
    configparser.SafeConfigParser = configparser.ConfigParser
    configparser.RawConfigParser.readfp = configparser.RawConfigParser.read_file
