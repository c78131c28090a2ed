"""Measures streams: our ASGI application beside the same bytes sent with no work behind them."""
