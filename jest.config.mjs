/** Tests import the built package by name (`qwen3-nvfp4` is dist/), as a user would; `test/ops` alone reaches below it. */
export default {
  testEnvironment: 'node',
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' }, module: { type: 'commonjs' } },
    ],
  },
  moduleNameMapper: {
    '^qwen3-nvfp4$': '<rootDir>/dist/index.cjs',
    '^qwen3-nvfp4/dat$': '<rootDir>/dist/dat.cjs',
  },
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  testPathIgnorePatterns: ['/node_modules/', '<rootDir>/test/gpu/'],
  testTimeout: 120000,
  reporters: ['default', '<rootDir>/test/support/summary-reporter.cjs'],
}
