"""Reports: pages and charts."""
