-- What Redis gives its scripts. `tox -e lua` checks the scripts as the server gets them, with their fragments put in;
-- .ci/luacheck adds to `ignore` what the fragments define, since a script gets the whole of each fragment it names.
std = "lua51"
max_line_length = 130
read_globals = { "redis", "cjson", "cmsgpack", "bit", "struct", "KEYS", "ARGV" }
-- A function defined on demand (scripts.py) contains the fragment that defines it under the same name.
ignore = { "431/add_stored" }
