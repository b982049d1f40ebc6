package network

// pingAdvice is what helps when the system refuses ping sockets.
const pingAdvice = "the host allows ping sockets to nobody: run: sudo sysctl net.ipv4.ping_group_range='0 2147483647'"
