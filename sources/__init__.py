"""Where frames come from: files, addresses of servers, cameras and network streams."""
