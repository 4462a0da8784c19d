"""Where KV bytes lie (device, host, disk) and the only code that copies them between tiers."""
