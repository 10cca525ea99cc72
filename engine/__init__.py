"""The machinery: networks, geometry and pictures as plain torch, without a host."""
