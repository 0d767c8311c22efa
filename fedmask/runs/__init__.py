"""What a person keeps of a run: its configuration, and what it leaves in its folder."""
