"""HoVer-Net: nuclei and their types by a network that learns each pixel's distance to the centre of its nucleus."""
