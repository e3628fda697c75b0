"""The software's name and version as they stand in every result."""

SOFTWARE_NAME = "qct-node"
SOFTWARE_VERSION = "0.1.0"
