--[[
size: how many jobs a worker could take now.
KEYS: "prefix:queue:"
Returns: jobs waiting, with a priority or without, those of a paused queue included
]]
local base = KEYS[1]
return redis.call('LLEN', base .. 'wait') + redis.call('LLEN', base .. 'paused') + redis.call('ZCARD', base .. 'prioritized')
