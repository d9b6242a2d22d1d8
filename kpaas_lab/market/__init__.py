"""The AI API marketplace: catalogue and web pages (app), data plane (gateway), and what a notebook calls (client)."""
