-- What Redis gives its scripts. `tox -e lua` checks the scripts as the server gets them, with what they use of their fragments.
std = "lua51"
max_line_length = 130
read_globals = { "redis", "cjson", "cmsgpack", "bit", "struct", "KEYS", "ARGV" }
