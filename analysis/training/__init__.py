"""Training of the networks and of the radiomics model. Imports analysis; no analysis step imports it."""
