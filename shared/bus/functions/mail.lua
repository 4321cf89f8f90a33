-- Inboxes, and the library's own version.

-- Put one batch into an inbox. keys: inbox. args: batch.
local function post(keys, args)
  put(keys[1], args[1])
  return 1
end

local function version()
  return LIBRARY_VERSION
end

redis.register_function('outrider_post', post)
redis.register_function{ function_name = 'outrider_version', callback = version, flags = { 'no-writes' } }
