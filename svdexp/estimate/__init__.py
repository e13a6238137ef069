"""What a run will take, counted before it starts: FLOPs and bytes per stage, and hours by this device's speed."""
