"""Write-behind: buffers that hold dirty records durably, and the flushers that save them."""
