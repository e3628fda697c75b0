"""What speaks to the outside: the DICOM network, DICOM objects, configuration and the process."""
