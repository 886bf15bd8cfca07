"""What a run learns about its images: colour corrections and poses."""
