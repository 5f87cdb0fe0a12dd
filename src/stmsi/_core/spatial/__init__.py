"""Space: neighbourhoods, Moran's I, blocks of correlated spots, random fields, simulated tissue."""
