"""Registration of an MSI section to an ST section: masks, images, landmarks, displacements, and how well they agree."""
