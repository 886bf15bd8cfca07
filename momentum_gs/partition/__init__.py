"""Floor 6: cuts a scene into blocks and assigns each block its training views."""
